-- Accounts: written by the gateway only.

CREATE TABLE teams (
    id          uuid PRIMARY KEY,
    name        text NOT NULL CONSTRAINT teams_name_length CHECK (char_length(name) BETWEEN 1 AND 128),
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- A key's secret is never stored: only its SHA-256 and the prefix that people recognise it by.
CREATE TABLE api_keys (
    id            uuid PRIMARY KEY,
    team_id       uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name          text NOT NULL CONSTRAINT api_keys_name_length CHECK (char_length(name) BETWEEN 1 AND 128),
    prefix        text NOT NULL,
    -- Lower-case hex of SHA-256 over the whole key text.
    hash          text NOT NULL CONSTRAINT api_keys_hash_form CHECK (hash ~ '^[0-9a-f]{64}$'),
    created_at    timestamptz NOT NULL DEFAULT now(),
    last_used_at  timestamptz,
    revoked_at    timestamptz,
    CONSTRAINT api_keys_hash_unique UNIQUE (hash)
);

CREATE INDEX api_keys_team ON api_keys (team_id, created_at);
