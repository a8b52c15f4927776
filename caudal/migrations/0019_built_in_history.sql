-- Who entered and left the built-in segments: what customer.segments told. It can't be had from the log, so it isn't among the views.

CREATE TABLE hub.built_in_history (
    customer_id uuid        NOT NULL,
    at          timestamptz NOT NULL,
    cause       text,
    had         text[]      NOT NULL,
    has         text[]      NOT NULL
);
CREATE INDEX built_in_history_customer ON hub.built_in_history (customer_id);
COMMENT ON TABLE hub.built_in_history IS 'One row for each time that the built-in segments of a customer became others; see projections/segments.py.';
COMMENT ON COLUMN hub.built_in_history.cause IS 'The id of the event; `rebuild`; null when accounts went from one customer to another.';
COMMENT ON COLUMN hub.built_in_history.had IS 'What is in `had` and not in `has` was left, what is in `has` and not in `had` entered.';

-- The former customers of a subject are looked up when one is erased, and when a list is judged.
CREATE INDEX former_customers_subject ON hub.former_customers (subject);
