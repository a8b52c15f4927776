-- Which generation of customer.changes is live; and the former customers of a generation that isn't are kept beside it.

CREATE TABLE hub.generation (number int NOT NULL CHECK (number > 0));
INSERT INTO hub.generation VALUES (1);
COMMENT ON TABLE hub.generation IS 'One row: the generation of customer.changes that the other identity tables, and the views, belong to.';

CREATE OR REPLACE FUNCTION hub.remember_former_customer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('INSERT INTO %I.former_customers VALUES ($1, $2) ON CONFLICT DO NOTHING', TG_TABLE_SCHEMA)
    USING OLD.customer_id, OLD.subject;
    RETURN NULL;
END $$;
