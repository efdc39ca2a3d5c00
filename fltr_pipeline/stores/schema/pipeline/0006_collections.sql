-- Where vectors may lie: in the collection of today's embedding model, and in those of the models before it.

-- One row per collection that vectors were put into, written before the first of them. It stays when the collection is
-- dropped: a worker that still has the old setting may make it anew.
CREATE TABLE IF NOT EXISTS pipeline.collections (
    name          text PRIMARY KEY,
    model         text,                           -- FLTR_EMBEDDING_MODEL as it was; NULL: not known
    first_used_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO pipeline.collections (name) SELECT DISTINCT collection FROM pipeline.datasets ON CONFLICT DO NOTHING;
