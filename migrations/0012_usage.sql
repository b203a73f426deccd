-- What teams had running: one row per team and ten seconds, only while it has capsules; kept for 60 days.
CREATE TABLE team_samples (
    team_id     uuid NOT NULL,
    at          timestamptz NOT NULL,
    running     integer NOT NULL,
    vcpus       integer NOT NULL,
    memory_mb   bigint NOT NULL,
    PRIMARY KEY (team_id, at)
);
CREATE INDEX team_samples_at ON team_samples (at);

-- The same by day (UTC, days since the epoch), kept for good: added up as the samples are written.
CREATE TABLE team_days (
    team_id         uuid NOT NULL,
    day             integer NOT NULL,
    -- Processor time of its capsules, their VMMs included, in microseconds.
    cpu_us          bigint NOT NULL DEFAULT 0,
    -- Memory of running capsules times time, in MiB milliseconds.
    memory_mb_ms    bigint NOT NULL DEFAULT 0,
    -- The largest of the day's samples.
    running_peak    integer NOT NULL DEFAULT 0,
    vcpus_peak      integer NOT NULL DEFAULT 0,
    memory_mb_peak  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (team_id, day)
);
