-- Who is who, what of it is still to be published, how far captures are translated, and what operators want of the workers.

CREATE TABLE hub.subjects (
    subject              text COLLATE "C" PRIMARY KEY,
    customer_id          uuid        NOT NULL,
    link_seq             bigint      NOT NULL,
    source               text        NOT NULL,
    created_at           timestamptz NOT NULL,
    linked_at            timestamptz NOT NULL,
    erased_at            timestamptz,
    reason               text        NOT NULL,
    previous_customer_id uuid,
    evidence             jsonb       NOT NULL DEFAULT '[]'
);
CREATE INDEX subjects_customer ON hub.subjects (customer_id, created_at);
COMMENT ON TABLE hub.subjects IS 'The newest link of every subject: whose it is, since when and why.';
COMMENT ON COLUMN hub.subjects.created_at IS 'When the first capture that names the subject was captured.';
COMMENT ON COLUMN hub.subjects.erased_at IS 'Identifiers stated up to then are forgotten, also those that arrive later.';

CREATE TABLE hub.identifiers (
    kind    text COLLATE "C" NOT NULL,
    value   text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    links   boolean NOT NULL DEFAULT true,
    PRIMARY KEY (kind, value, subject)
);
CREATE INDEX identifiers_subject ON hub.identifiers (subject);
COMMENT ON TABLE hub.identifiers IS 'Normalised identifiers as subjects stated them; the lookup of a customer by any of them.';
COMMENT ON COLUMN hub.identifiers.links IS 'False: over the limit of its customer, so it is found by lookups and links nothing.';

CREATE TABLE hub.unpublished_links (
    batch      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    subjects   text[] NOT NULL
);
COMMENT ON TABLE hub.unpublished_links IS 'Subjects by batch whose newest link is not yet known to be on customer.changes.';

CREATE TABLE hub.translated (
    topic       text   NOT NULL,
    partition   int    NOT NULL,
    next_offset bigint NOT NULL,
    changes     jsonb  NOT NULL,
    PRIMARY KEY (topic, partition)
);
COMMENT ON TABLE hub.translated IS 'Changes made of captures below next_offset lie below the vector changes ({partition: next offset} of customer.changes).';

CREATE TABLE hub.control (
    key        text PRIMARY KEY,
    value      jsonb NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE hub.control IS 'What operators want of the workers, such as translate.paused.';

CREATE TABLE hub.redrives (
    dead_letter_id uuid PRIMARY KEY,
    redriven_at    timestamptz NOT NULL DEFAULT now(),
    times          int NOT NULL DEFAULT 1
);
COMMENT ON TABLE hub.redrives IS 'Dead letters that were put back on their topic.';
