-- API tokens: only the SHA-256 of a token is kept.

CREATE TABLE hub.tokens (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text        NOT NULL,
    hash         bytea       NOT NULL UNIQUE CHECK (length(hash) = 32),
    scopes       text[]      NOT NULL CHECK (cardinality(scopes) > 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    last_used_at timestamptz,
    revoked_at   timestamptz
);
CREATE UNIQUE INDEX tokens_name ON hub.tokens (name) WHERE revoked_at IS NULL;
COMMENT ON TABLE hub.tokens IS 'Who may use the API. A name belongs to one token that is not revoked; last_used_at is kept to the minute.';
