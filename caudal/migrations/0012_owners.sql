-- Who publishes for a partition.

CREATE TABLE hub.owners (partition int PRIMARY KEY, epoch bigint NOT NULL);
COMMENT ON TABLE hub.owners IS 'How often a partition of the log was given to a worker. One that holds an older number has lost it, even if it does not know yet.';
