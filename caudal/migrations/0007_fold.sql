-- Text compared without case and accents, and similar text found: for criteria and search.

CREATE EXTENSION IF NOT EXISTS unaccent;
CREATE EXTENSION IF NOT EXISTS pg_trgm;

-- unaccent(text) is only STABLE, since it looks for its dictionary along the search path. With the dictionary named it can't change,
-- so it may stand in an index. Wherever the extension was put, it is found.
DO $$
DECLARE
    home text := (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'unaccent');
BEGIN
    EXECUTE format(
        'CREATE FUNCTION hub.unaccented(value text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 50 '
        'RETURN %1$I.unaccent(%2$L::regdictionary, value)',
        home, home || '.unaccent'
    );
END $$;
COMMENT ON FUNCTION hub.unaccented IS 'The text without accents.';

-- Not STRICT, and of plain functions only: so the planner writes it into the query, and text that is ASCII costs next to nothing.
CREATE FUNCTION hub.fold(value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN lower(CASE WHEN octet_length(value) = length(value) THEN value ELSE hub.unaccented(value) END COLLATE pg_c_utf8);
COMMENT ON FUNCTION hub.fold IS 'The text in lower case and without accents.';
