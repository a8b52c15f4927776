-- Where the subjects of a merged-away customer went: the newest link names only the customer before it.

CREATE TABLE hub.former_customers (
    customer_id uuid,
    subject     text COLLATE "C",
    PRIMARY KEY (customer_id, subject)
);
COMMENT ON TABLE hub.former_customers IS 'Customers that a subject once belonged to; its customer now is in hub.subjects.';

CREATE FUNCTION hub.remember_former_customer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO hub.former_customers VALUES (OLD.customer_id, OLD.subject) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER remember_former_customer AFTER UPDATE OF customer_id ON hub.subjects
    FOR EACH ROW WHEN (OLD.customer_id <> NEW.customer_id) EXECUTE FUNCTION hub.remember_former_customer();
