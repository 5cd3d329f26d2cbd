-- Several jobs may learn the same examples: the jobs of one sweep. Each starts from zero and continues no adapter, so
-- that each begins a lineage of its own and no lineage learns an example twice.

-- The number of the sweep: the id of its first job. Jobs that share no examples have none.
ALTER TABLE jobs ADD COLUMN sweep INTEGER
    CHECK (sweep IS NULL OR (start = 'fresh' AND parent IS NULL));

-- Every step of a job's training. Rows and not one value: a job has up to a hundred thousand steps.
CREATE TABLE job_curve (
    job_id        INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    step          INTEGER NOT NULL CHECK (step > 0),
    loss          REAL    NOT NULL, -- nats per token
    learning_rate REAL    NOT NULL,
    PRIMARY KEY (job_id, step)
) STRICT, WITHOUT ROWID;

DROP TRIGGER learned_once;
DROP VIEW consumed;
DROP VIEW reserved;

-- Which job learned a mark: one row a mark, the first job of a sweep that succeeded.
CREATE VIEW consumed AS
    SELECT jf.feedback_id, min(jf.job_id) AS job_id
    FROM job_feedback jf JOIN jobs j ON j.id = jf.job_id
    WHERE jf.role = 'new' AND j.state = 'succeeded'
    GROUP BY jf.feedback_id;

-- Which waiting or running job is about to learn a mark: one row a mark, the first job of a sweep.
CREATE VIEW reserved AS
    SELECT jf.feedback_id, min(jf.job_id) AS job_id
    FROM job_feedback jf JOIN jobs j ON j.id = jf.job_id
    WHERE jf.role = 'new' AND j.state IN ('queued', 'running', 'evaluating')
    GROUP BY jf.feedback_id;

-- No example is new in two jobs that succeeded, whatever the program does, unless they belong to one sweep.
CREATE TRIGGER learned_once BEFORE UPDATE OF state ON jobs
WHEN NEW.state = 'succeeded' AND OLD.state <> 'succeeded' AND EXISTS (
    SELECT 1 FROM job_feedback mine
    JOIN job_feedback theirs ON theirs.feedback_id = mine.feedback_id
    JOIN jobs j ON j.id = theirs.job_id
    WHERE mine.job_id = NEW.id AND mine.role = 'new'
      AND theirs.job_id <> NEW.id AND theirs.role = 'new' AND j.state = 'succeeded'
      AND (NEW.sweep IS NULL OR j.sweep IS NOT NEW.sweep))
BEGIN
    SELECT RAISE(ABORT, 'an example of this job was already learned in another');
END;
