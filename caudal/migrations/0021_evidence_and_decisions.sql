-- What accounts state of their own contacts now, and what people decided of subjects.

-- also of the generations of the log that are kept
DO $$
DECLARE
    kept text;
BEGIN
    FOR kept IN SELECT relnamespace::regnamespace FROM pg_class
                WHERE relname = 'subjects' AND (relnamespace = 'hub'::regnamespace OR relnamespace::regnamespace::text ~ '^identity_[0-9]+$')
    LOOP
        EXECUTE format($t$
            ALTER TABLE %1$s.subjects ADD contacts text NOT NULL DEFAULT '';
            ALTER TABLE %1$s.identifiers ADD fielded boolean NOT NULL DEFAULT false, ADD withdrawn boolean NOT NULL DEFAULT false
        $t$, kept);
    END LOOP;
END $$;

COMMENT ON COLUMN hub.subjects.contacts IS 'The newest statement of each field that states identifiers: version, and the identifiers.';

COMMENT ON COLUMN hub.identifiers.fielded IS 'A field of the account stated it, so that the field alone decides whether it still counts.';
COMMENT ON COLUMN hub.identifiers.withdrawn IS 'The field states it no more.';

CREATE TABLE hub.decisions (
    decision_id uuid PRIMARY KEY,
    kind        text        NOT NULL,
    subject     text COLLATE "C" NOT NULL,
    decided_at  timestamptz NOT NULL,
    actor       text        NOT NULL,
    comment     text,
    undoes      uuid,
    undone_by   uuid,
    moves       jsonb       NOT NULL DEFAULT '[]'
);
COMMENT ON TABLE hub.decisions IS 'What people decided of subjects, as far as it was done; moves are (subject, customer before, customer after).';

CREATE TABLE hub.decided (
    subject     text COLLATE "C" NOT NULL,
    other       text COLLATE "C" NOT NULL,
    decision_id uuid        NOT NULL,
    decided_at  timestamptz NOT NULL,
    verdict     text        NOT NULL,
    PRIMARY KEY (subject, other, decision_id)
);
CREATE INDEX decided_other ON hub.decided (other);
CREATE INDEX decided_decision ON hub.decided (decision_id);
COMMENT ON TABLE hub.decided IS 'By pair of subjects what a decision says: together, apart, or free of what was decided before. The newest counts.';
