-- Replays: what was asked, how far it is, what would change; and rows of the outbox that a replay changed.

CREATE TABLE hub.replays (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('full', 'view', 'captures', 'as_of', 'verify')),
    state      text NOT NULL DEFAULT 'running'
               CHECK (state IN ('running', 'built', 'swapped', 'rolled_back', 'cancelled', 'failed', 'dropped')),
    schema     text        NOT NULL DEFAULT '',
    params     jsonb       NOT NULL DEFAULT '{}',
    ends       jsonb       NOT NULL DEFAULT '{}',
    progress   jsonb       NOT NULL DEFAULT '{}',
    diff       jsonb,
    error      text,
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    ended_at   timestamptz
);
COMMENT ON TABLE hub.replays IS 'Every replay. One runs at a time: the process that does holds an advisory lock, so a running one whose lock is free was interrupted.';
COMMENT ON COLUMN hub.replays.schema IS 'What it builds, and after a swap the schema that was live before.';
COMMENT ON COLUMN hub.replays.ends IS 'Where the log ended when it began, {partition: next offset}: everything before is loaded, what follows is caught up with.';

CREATE TABLE hub.touched (customer_id uuid NOT NULL);
COMMENT ON TABLE hub.touched IS 'While one view is rebuilt: customers that the live projection touched since it began.';

ALTER TABLE hub.outbox ADD COLUMN rebuilt boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN hub.outbox.rebuilt IS 'The rows changed by a replay, not by an event.';
