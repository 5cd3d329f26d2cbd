-- Times are milliseconds since 1970 (UTC). Booleans are 0 or 1. JSON is text that SQLite has checked.

-- A user's judgement of an answer. Ids are never used again: the held-out share is drawn by them.
CREATE TABLE feedback (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    messages    TEXT    NOT NULL CHECK (json_valid(messages)),
    response    TEXT    NOT NULL,
    mark        TEXT    NOT NULL CHECK (mark IN ('good', 'medium', 'critical', 'fix')),
    weight      REAL    NOT NULL CHECK (weight > 0),
    note        TEXT,
    fix         TEXT,
    domain      TEXT    NOT NULL,
    adapter     TEXT,   -- the adapter that gave the answer; the mark outlives it, so no foreign key
    created_at  INTEGER NOT NULL,
    archived    INTEGER NOT NULL DEFAULT 0 CHECK (archived IN (0, 1)),
    -- Forgotten: the text is gone; the row stays because a job has seen it.
    forgotten   INTEGER NOT NULL DEFAULT 0 CHECK (forgotten IN (0, 1))
) STRICT;
CREATE INDEX feedback_by_domain ON feedback (domain, archived);

CREATE TABLE jobs (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    name             TEXT    NOT NULL,
    domain           TEXT    NOT NULL,
    start            TEXT    NOT NULL CHECK (start IN ('continue', 'fresh', 'delta')),
    priority         INTEGER NOT NULL DEFAULT 0,
    state            TEXT    NOT NULL DEFAULT 'queued' CHECK (state IN
                     ('queued', 'running', 'evaluating', 'succeeded', 'rejected', 'failed', 'cancelled')),
    attempts         INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    examples         INTEGER NOT NULL CHECK (examples >= 0),
    step             INTEGER NOT NULL DEFAULT 0,
    total_steps      INTEGER NOT NULL DEFAULT 0,
    loss             REAL,
    heldout_before   REAL,
    heldout_after    REAL,
    adapter          TEXT,   -- what the job published
    parent           TEXT,   -- what it continues from
    error            TEXT,
    gate             TEXT    CHECK (gate IS NULL OR json_valid(gate)),
    params           TEXT    NOT NULL CHECK (json_valid(params)),
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    created_at       INTEGER NOT NULL,
    started_at       INTEGER,
    finished_at      INTEGER,
    not_before       INTEGER
) STRICT;
CREATE UNIQUE INDEX one_active ON jobs ((1)) WHERE state IN ('running', 'evaluating');

-- What a job learns from and is measured on, as it was when the job was enqueued.
CREATE TABLE job_feedback (
    job_id      INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    feedback_id INTEGER NOT NULL REFERENCES feedback (id),
    role        TEXT    NOT NULL CHECK (role IN ('new', 'replay', 'heldout')),
    target      TEXT    NOT NULL,
    weight      REAL    NOT NULL CHECK (weight > 0),
    PRIMARY KEY (job_id, feedback_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_feedback_by_feedback ON job_feedback (feedback_id, role);

CREATE TABLE adapters (
    id             TEXT    PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64 AND id <> 'base'),
    domain         TEXT    NOT NULL,
    parent         TEXT    REFERENCES adapters (id),
    state          TEXT    NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'rolled_back', 'quarantined')),
    live           INTEGER NOT NULL DEFAULT 0 CHECK (live IN (0, 1)),
    base           TEXT    NOT NULL,
    base_hash      TEXT    NOT NULL,
    rank           INTEGER NOT NULL CHECK (rank > 0),
    target_modules TEXT    NOT NULL CHECK (json_valid(target_modules)),
    examples       INTEGER NOT NULL CHECK (examples >= 0),
    gate           TEXT    NOT NULL CHECK (json_valid(gate)),
    created_at     INTEGER NOT NULL,
    bytes          INTEGER NOT NULL CHECK (bytes >= 0),
    CHECK (live = 0 OR state = 'ready')
) STRICT;
CREATE UNIQUE INDEX one_live ON adapters (base_hash, domain) WHERE live = 1;

-- What happened to jobs and adapters, in order.
CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    job_id  INTEGER REFERENCES jobs (id) ON DELETE CASCADE,
    adapter TEXT,
    kind    TEXT    NOT NULL,
    detail  TEXT
) STRICT;
CREATE INDEX events_by_job ON events (job_id);

-- One row for each answer.
CREATE TABLE usage (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    at            INTEGER NOT NULL,
    base          TEXT    NOT NULL,
    adapters      TEXT    NOT NULL CHECK (json_valid(adapters)), -- [{"id": …, "weight": …}]
    prompt_tokens INTEGER NOT NULL CHECK (prompt_tokens >= 0),
    new_tokens    INTEGER NOT NULL CHECK (new_tokens >= 0),
    prefill_ms    REAL    NOT NULL,
    decode_ms     REAL    NOT NULL,
    finish_reason TEXT    NOT NULL,
    feedback_id   INTEGER REFERENCES feedback (id) ON DELETE SET NULL
) STRICT;

-- Which job learned a mark. A mark is consumed when it is new in a job that succeeded; nothing counts it.
CREATE VIEW consumed AS
    SELECT jf.feedback_id, jf.job_id
    FROM job_feedback jf JOIN jobs j ON j.id = jf.job_id
    WHERE jf.role = 'new' AND j.state = 'succeeded';

-- Which waiting or running job is about to learn a mark.
CREATE VIEW reserved AS
    SELECT jf.feedback_id, jf.job_id
    FROM job_feedback jf JOIN jobs j ON j.id = jf.job_id
    WHERE jf.role = 'new' AND j.state IN ('queued', 'running', 'evaluating');

-- Which marks the gate has measured a job on.
CREATE VIEW measured AS
    SELECT DISTINCT jf.feedback_id
    FROM job_feedback jf JOIN jobs j ON j.id = jf.job_id
    WHERE jf.role = 'heldout' AND j.state IN ('succeeded', 'rejected');

-- In how many answers an adapter was used.
CREATE VIEW used_in AS
    SELECT json_extract(a.value, '$.id') AS adapter, count(*) AS answers
    FROM usage, json_each(usage.adapters) AS a
    GROUP BY 1;

-- No example is new in two jobs that succeeded, whatever the program does.
CREATE TRIGGER learned_once BEFORE UPDATE OF state ON jobs
WHEN NEW.state = 'succeeded' AND OLD.state <> 'succeeded' AND EXISTS (
    SELECT 1 FROM job_feedback jf JOIN consumed c ON c.feedback_id = jf.feedback_id
    WHERE jf.job_id = NEW.id AND jf.role = 'new' AND c.job_id <> NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'an example of this job was already learned in another');
END;
