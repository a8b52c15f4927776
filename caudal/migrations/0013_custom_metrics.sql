-- Metrics that analysts define: see projections/custom. What stands here is what the live schema was made with.

CREATE TABLE hub.custom_metrics (
    name       text        PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,39}$'),
    title      text        NOT NULL DEFAULT '',
    statement  text        NOT NULL,
    columns    jsonb       NOT NULL,
    reads      text[]      NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    applied_by text        NOT NULL
);
COMMENT ON COLUMN hub.custom_metrics.columns IS 'Value → its type.';
COMMENT ON COLUMN hub.custom_metrics.reads IS 'The facts and views whose change touches a value.';
