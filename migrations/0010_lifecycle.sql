-- What users can choose for a capsule, and what only its row tells of it.
ALTER TABLE capsules
    -- Size of its disk in MiB, and what it took on its host when it was looked at last; 0: not known yet.
    ADD COLUMN disk_mb        bigint NOT NULL DEFAULT 0,
    ADD COLUMN disk_used_mb   bigint NOT NULL DEFAULT 0,
    -- What happens when timeout_sec is over.
    ADD COLUMN timeout_action text NOT NULL DEFAULT 'pause'
        CONSTRAINT capsules_timeout_action_known CHECK (timeout_action IN ('pause', 'destroy')),
    -- What it may reach; NULL: nothing.
    ADD COLUMN network        jsonb,
    -- Any use brings it back from a pause.
    ADD COLUMN auto_resume    boolean NOT NULL DEFAULT false,
    -- Ports that are open to callers without a key.
    ADD COLUMN public_ports   integer[] NOT NULL DEFAULT '{}'
        CONSTRAINT capsules_public_ports_count CHECK (cardinality(public_ports) <= 64),
    -- Opens its ports in place of a key. Not hashed: its team reads it with every record. Empty: there is none.
    ADD COLUMN access_token   text NOT NULL DEFAULT '',
    -- Who put it on disk, or is doing so. What its host paused by itself comes back when it is used.
    ADD COLUMN paused_by      text NOT NULL DEFAULT 'host'
        CONSTRAINT capsules_paused_by_known CHECK (paused_by IN ('user', 'host'));

-- Requests that are answered once: written in one transaction with the rows they made.
CREATE TABLE requests (
    team_id     uuid NOT NULL,
    -- Chosen by the client.
    key         text NOT NULL CONSTRAINT requests_key_length CHECK (char_length(key) BETWEEN 1 AND 255),
    -- SHA-256 of what was asked for: the same key with another request is a conflict.
    digest      bytea NOT NULL CONSTRAINT requests_digest_length CHECK (octet_length(digest) = 32),
    -- What it made: capsules, or a snapshot.
    capsules    uuid[] NOT NULL DEFAULT '{}',
    snapshot    uuid,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT requests_once PRIMARY KEY (team_id, key)
);

-- Named snapshots of teams' capsules. Their files are on one host.
CREATE TABLE snapshots (
    id          uuid PRIMARY KEY,
    team_id     uuid NOT NULL,
    name        text NOT NULL CONSTRAINT snapshots_name_form CHECK (name ~ '^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$'),
    -- making: its host may have files of it. deleted: its files still have to go; then the row goes.
    state       text NOT NULL CONSTRAINT snapshots_state_known CHECK (state IN ('making', 'ready', 'deleted')),
    -- The capsule it was taken from, and the template that came from.
    capsule_id  uuid NOT NULL,
    template    text NOT NULL,
    host_id     text NOT NULL,
    vcpus       integer NOT NULL,
    memory_mb   bigint NOT NULL,
    size_bytes  bigint NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE UNIQUE INDEX snapshots_name_unique ON snapshots (team_id, name) WHERE state = 'ready';
CREATE INDEX snapshots_deleted ON snapshots (host_id) WHERE state = 'deleted';
