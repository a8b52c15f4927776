-- Scores that depend on all customers and on the time, computed now and then. See caudal/scores.py.

CREATE TABLE hub.customer_scores (
    customer_id            uuid PRIMARY KEY,
    rfm_recency            int         NOT NULL CHECK (rfm_recency BETWEEN 1 AND 5),
    rfm_frequency          int         NOT NULL CHECK (rfm_frequency BETWEEN 1 AND 5),
    rfm_monetary           int         CHECK (rfm_monetary BETWEEN 1 AND 5),
    probability_alive      float8,
    expected_orders_90d    float8,
    predicted_value_minor  bigint,
    currency               text        NOT NULL,
    expected_next_order_at timestamptz,
    computed_at            timestamptz NOT NULL
);
COMMENT ON COLUMN hub.customer_scores.rfm_monetary IS 'NULL while a rate of a currency that the customer spent is missing.';
COMMENT ON COLUMN hub.customer_scores.predicted_value_minor IS 'Expected spend of the next twelve months, minor units of `currency`, the base currency.';
