-- online: its agent is connected. unreachable: it was a moment ago. offline: it has not been heard of for long.
-- last_seen is its heartbeat.
ALTER TABLE hosts ADD COLUMN status text NOT NULL DEFAULT 'offline'
    CONSTRAINT hosts_status_known CHECK (status IN ('online', 'unreachable', 'offline'));
