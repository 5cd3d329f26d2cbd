-- A session can change its model. What is learned belongs to the model whose answers were marked.

-- The hash of the model that gave the marked answer; NULL is any model (imported marks, and those of earlier versions).
ALTER TABLE feedback ADD COLUMN base TEXT;

-- The hash of the model that a job trains; NULL is the one that is in use when it runs.
ALTER TABLE jobs ADD COLUMN base TEXT;
-- How to load that model, as JSON.
ALTER TABLE jobs ADD COLUMN model TEXT;
