-- What the search index is made of: see projections/search.py.

-- Everything of a profile that a person is looked for by, folded. Phones and documents are stored without punctuation.
CREATE FUNCTION hub.search_text(
    name text, email text, phone text, cpf text, cnpj text, city text, other_emails text[], other_phones text[]
) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN hub.fold(concat_ws(' ', name, email, phone, cpf, cnpj, city, array_to_string(other_emails, ' '), array_to_string(other_phones, ' ')));

-- The LIKE pattern of texts that contain a word, folded as they are.
CREATE FUNCTION hub.containing(word text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '%' || replace(replace(replace(hub.fold(word), '\', '\\'), '%', '\%'), '_', '\_') || '%';

-- Notes which profiles changed, in the schema of the table that it stands on.
CREATE FUNCTION hub.note_for_search() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('INSERT INTO %I.search_due SELECT customer_id FROM changed', TG_TABLE_SCHEMA);
    RETURN NULL;
END $$;
