-- Exchange rates that the operator loads, and money of several currencies in the base currency. See caudal/rates.py.

CREATE TABLE hub.rates (
    currency text    NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    day      date    NOT NULL,
    rate     numeric NOT NULL CHECK (rate > 0),
    factor   numeric NOT NULL CHECK (factor > 0),
    base     text    NOT NULL CHECK (base ~ '^[A-Z]{3}$'),
    PRIMARY KEY (currency, day)
);
COMMENT ON COLUMN hub.rates.rate IS 'Units of the base currency for one unit of this one.';
COMMENT ON COLUMN hub.rates.factor IS 'Minor units of the base currency for one minor unit of this one; the newest one of a currency counts.';
COMMENT ON COLUMN hub.rates.base IS 'The base currency, the same in every row.';

-- what counts until the operator says otherwise: the base currency itself
INSERT INTO hub.rates VALUES ('BRL', '0001-01-01', 1, 1, 'BRL');
