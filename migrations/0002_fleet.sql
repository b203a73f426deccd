-- The fleet: written by pool-manager only.
-- No foreign keys to the account tables: they have another writer, and a team's end does not end its capsules here.

CREATE TABLE hosts (
    id            text PRIMARY KEY,
    -- How gateway and pool-manager reach the agent, e.g. unix:/run/hearth/agent.sock
    endpoint      text NOT NULL,
    -- "qemu" or "firecracker".
    engine        text NOT NULL,
    -- "tcg" or "kvm".
    accelerator   text NOT NULL DEFAULT '',
    cpus          integer NOT NULL DEFAULT 0,
    memory_mb     bigint NOT NULL DEFAULT 0,
    registered_at timestamptz NOT NULL DEFAULT now(),
    last_seen     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE templates (
    name          text PRIMARY KEY CONSTRAINT templates_name_form CHECK (name ~ '^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$'),
    -- Content key of the snapshot that capsules of this template start from.
    snapshot_key  text NOT NULL,
    vcpus         integer NOT NULL,
    memory_mb     bigint NOT NULL,
    size_bytes    bigint NOT NULL,
    languages     text[] NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- Capsules that users created. Parked ones and those of one-shot runs are in memory only: nothing on a claim waits for
-- the database. Environment variables are not stored: they may hold secrets.
CREATE TABLE capsules (
    id              uuid PRIMARY KEY,
    team_id         uuid NOT NULL,
    template        text NOT NULL,
    -- NULL until a host is chosen.
    host_id         text,
    state           text NOT NULL CONSTRAINT capsules_state_known CHECK (
                        state IN ('starting', 'running', 'stopping', 'stopped', 'failed', 'missing')),
    -- Why it stopped or failed; for people.
    reason          text NOT NULL DEFAULT '',
    vcpus           integer NOT NULL,
    memory_mb       bigint NOT NULL,
    -- Inactivity timeout in seconds; 0: none.
    timeout_sec     bigint NOT NULL DEFAULT 0 CONSTRAINT capsules_timeout_range CHECK (timeout_sec >= 0),
    name            text NOT NULL DEFAULT '',
    metadata        jsonb NOT NULL DEFAULT '{}' CONSTRAINT capsules_metadata_object CHECK (jsonb_typeof(metadata) = 'object'),
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    last_active_at  timestamptz,
    updated_at      timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX capsules_team ON capsules (team_id, created_at DESC);
CREATE INDEX capsules_state ON capsules (state) WHERE state NOT IN ('stopped', 'failed');
