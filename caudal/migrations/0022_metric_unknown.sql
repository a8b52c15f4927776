-- Of whom a custom metric isn't computed any more, because it took too long: see projections/custom/bound.py.

CREATE TABLE hub.metric_unknown (
    function    text        NOT NULL,
    customer_id uuid        NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (function, customer_id)
);
COMMENT ON COLUMN hub.metric_unknown.function IS 'That computes the metric, without its schema.';
COMMENT ON COLUMN hub.metric_unknown.customer_id IS 'Zeros stand for everybody.';
