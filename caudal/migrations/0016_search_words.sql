-- The words of a text of search: what lies between all that is neither letter nor digit. Of long numbers the last eight digits: so a
-- phone is one word with or without the codes of country and area.
CREATE FUNCTION hub.search_words(text text) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN string_to_array(trim(regexp_replace(
    regexp_replace(text COLLATE pg_c_utf8, '\m\d+(\d{8})\M', '\1', 'g'), '[^[:alnum:]]+', ' ', 'g'
)), ' ');
