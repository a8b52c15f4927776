-- What the projection keeps beside the views: where it stands, and what it still has to publish.

CREATE SCHEMA IF NOT EXISTS hub;

CREATE TABLE hub.offsets (
    topic       text   NOT NULL,
    partition   int    NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, partition)
);
COMMENT ON TABLE hub.offsets IS 'Next offset to read, written in the transaction that holds what was made of the offsets before it.';

CREATE TABLE hub.outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    partitions   int[]  NOT NULL,
    topic        text   NOT NULL,
    customer_ids uuid[] NOT NULL,
    payload      jsonb
);
COMMENT ON TABLE hub.outbox IS 'Changed rows not yet known to be on the change topics, by the partitions they go to; id is the order.';
