-- A better answer can be the model's own: a revision, made with the note in its context and taken by the user (or by the
-- policy). What the user wrote stays 0.
ALTER TABLE feedback ADD COLUMN revised INTEGER NOT NULL DEFAULT 0 CHECK (revised IN (0, 1));
