-- Segments that people define: what they are, who is in them, when that could change with no event. See projections/membership.

CREATE TABLE hub.segments (
    id          int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text        NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,63}$'),
    version     int         NOT NULL DEFAULT 1,
    state       text        NOT NULL DEFAULT 'filling' CHECK (state IN ('filling', 'live', 'leaving', 'archived')),
    description text        NOT NULL DEFAULT '',
    criteria    jsonb,
    filled      uuid        NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    revision    bigint      NOT NULL,
    bundle      text        NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    changed_at  timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX segments_revision ON hub.segments (revision);
COMMENT ON COLUMN hub.segments.state IS 'filling: its newest version is being applied to everyone; leaving: archived, its members are leaving.';
COMMENT ON COLUMN hub.segments.criteria IS 'The condition tree; null for a list of customers.';
COMMENT ON COLUMN hub.segments.filled IS 'While it is filling or leaving: customers up to this id are done.';
COMMENT ON COLUMN hub.segments.revision IS 'Rises with every change of any definition; whoever changes one locks the table first.';
COMMENT ON COLUMN hub.segments.bundle IS 'With which others it is judged; one that comes into another bundle is applied to everyone again.';

CREATE TABLE hub.segment_versions (
    segment_id  int         NOT NULL REFERENCES hub.segments,
    version     int         NOT NULL,
    criteria    jsonb,
    description text        NOT NULL,
    changed_at  timestamptz NOT NULL DEFAULT now(),
    changed_by  text        NOT NULL,
    PRIMARY KEY (segment_id, version)
);

CREATE TABLE hub.segment_listed (
    segment_id  int  NOT NULL REFERENCES hub.segments,
    customer_id uuid NOT NULL,
    PRIMARY KEY (segment_id, customer_id)
);
CREATE INDEX segment_listed_customer ON hub.segment_listed (customer_id);
COMMENT ON TABLE hub.segment_listed IS 'Who was put on the lists; a customer that was merged into another one stays on it under the old id.';

CREATE TABLE hub.segment_memberships (
    customer_id uuid        NOT NULL,
    segment_id  int         NOT NULL REFERENCES hub.segments,
    entered_at  timestamptz NOT NULL,
    PRIMARY KEY (customer_id, segment_id)
);
CREATE INDEX segment_memberships_segment ON hub.segment_memberships (segment_id, customer_id);

CREATE TABLE hub.segment_history (
    customer_id uuid        NOT NULL,
    segment_id  int         NOT NULL REFERENCES hub.segments,
    version     int         NOT NULL,
    entered     boolean     NOT NULL,
    at          timestamptz NOT NULL,
    cause       text        NOT NULL
);
CREATE INDEX segment_history_customer ON hub.segment_history (customer_id, at);
COMMENT ON COLUMN hub.segment_history.cause IS 'The id of the event, `time`, or `definition`.';

CREATE TABLE hub.segment_due (
    customer_id uuid        NOT NULL,
    bundle      text COLLATE "C" NOT NULL,
    at          timestamptz NOT NULL,
    PRIMARY KEY (customer_id, bundle)
);
CREATE INDEX segment_due_at ON hub.segment_due (at);
COMMENT ON TABLE hub.segment_due IS 'When a membership in some segment of a bundle could change with no event: never late, perhaps early.';

CREATE TABLE hub.segment_touched (customer_id uuid NOT NULL, facts int NOT NULL, cause text);
COMMENT ON TABLE hub.segment_touched IS 'Customers that a batch or a swap changed and whose memberships are not judged again yet; facts: which ones, as bits.';
