-- Who changed a segment last: its versions tell who edited it, but archiving or describing one makes no version.

ALTER TABLE hub.segments ADD COLUMN changed_by text NOT NULL DEFAULT '';
UPDATE hub.segments s SET changed_by = v.changed_by FROM hub.segment_versions v WHERE v.segment_id = s.id AND v.version = s.version;
