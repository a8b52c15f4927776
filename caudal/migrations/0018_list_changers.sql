-- Who put customers on lists and took them off: like the versions of a segment's criteria.

CREATE TABLE hub.segment_list_changes (
    segment_id int         NOT NULL REFERENCES hub.segments,
    changed_at timestamptz NOT NULL DEFAULT now(),
    changed_by text        NOT NULL,
    change     text        NOT NULL CHECK (change IN ('put', 'taken')),
    customers  int         NOT NULL
);
CREATE INDEX segment_list_changes_segment ON hub.segment_list_changes (segment_id, changed_at);
COMMENT ON COLUMN hub.segment_list_changes.customers IS 'How many were put on it or taken off; who they are is not kept here.';
