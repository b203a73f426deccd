-- Who may do what: written by the gateway only.

-- What a key may do, a list of words (docs/api.md); and until when.
ALTER TABLE api_keys ADD COLUMN scopes text[] NOT NULL DEFAULT '{read,run,manage,admin}'
    CONSTRAINT api_keys_scopes_known CHECK (scopes <@ '{read,run,manage,admin,platform}'::text[]);
ALTER TABLE api_keys ADD COLUMN expires_at timestamptz;

-- The first key of an installation is its operator's.
UPDATE api_keys SET scopes = '{read,run,manage,admin,platform}'
    WHERE id = (SELECT id FROM api_keys ORDER BY created_at, id LIMIT 1);

-- People. Keys act; a user is who a key was made for.
CREATE TABLE users (
    id          uuid PRIMARY KEY,
    email       text NOT NULL CONSTRAINT users_email_form CHECK (email ~ '^[^@\s]+@[^@\s]+$' AND char_length(email) <= 254),
    name        text NOT NULL DEFAULT '' CONSTRAINT users_name_length CHECK (char_length(name) <= 128),
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX users_email ON users (lower(email));

CREATE TABLE team_members (
    team_id     uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    user_id     uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role        text NOT NULL DEFAULT 'member' CONSTRAINT team_members_role CHECK (role IN ('owner', 'admin', 'member')),
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, user_id)
);

ALTER TABLE api_keys ADD COLUMN user_id uuid REFERENCES users (id) ON DELETE SET NULL;
-- The key that made it; none for the first.
ALTER TABLE api_keys ADD COLUMN created_by uuid;

-- A team that is gone keeps its row, so that the audit log and usage still have its name.
ALTER TABLE teams ADD COLUMN deleted_at timestamptz;

-- Every change that was asked for, done or not. No foreign keys: what is logged may be gone.
CREATE TABLE audit_log (
    id             uuid PRIMARY KEY,
    at             timestamptz NOT NULL,
    team_id        uuid NOT NULL,
    key_id         uuid NOT NULL,
    action         text NOT NULL,
    resource_type  text NOT NULL,
    resource_id    text NOT NULL DEFAULT '',
    -- HTTP status of the answer; 499 when the caller left before it.
    status         integer NOT NULL,
    request_id     text NOT NULL
);
CREATE INDEX audit_log_team ON audit_log (team_id, at DESC, id DESC);
