-- Which topics the stored offsets count in: another topic of the same name has other records at them.

CREATE TABLE hub.logs (
    topic      text PRIMARY KEY,
    topic_id   text        NOT NULL,
    fault      text,
    unread     bigint      NOT NULL DEFAULT 0,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE hub.logs IS 'Topics that offsets are stored for, as Kafka knows them by id.';
COMMENT ON COLUMN hub.logs.topic_id IS 'Kafka''s own id of the topic that the offsets count in; empty where the broker tells none.';
COMMENT ON COLUMN hub.logs.fault IS 'Why nobody goes on with it: made_again or shorter.';
COMMENT ON COLUMN hub.logs.unread IS 'Records that were deleted before they were read, in all.';
