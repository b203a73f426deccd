-- A capsule that its host put on disk is kept, and listed as such.
ALTER TABLE capsules DROP CONSTRAINT capsules_state_known;
ALTER TABLE capsules ADD CONSTRAINT capsules_state_known CHECK (
    state IN ('starting', 'running', 'paused', 'stopping', 'stopped', 'failed', 'missing'));
