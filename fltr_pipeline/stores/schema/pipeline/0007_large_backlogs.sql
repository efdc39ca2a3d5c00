-- What was read whole, again and again, while much waits: work that is parked, chunks that are still to be embedded.

-- What is parked is claimed in the index's own order; before, each claim read and sorted all of a stage. Not by
-- `credits_needed` itself: the sensor's look at who awaits credits would read this index, and so all that is parked.
DROP INDEX IF EXISTS pipeline.documents_by_stage;
CREATE INDEX documents_by_stage ON pipeline.documents (dataset_id, stage, coalesce(credits_needed, 0), document_id)
    WHERE stage IS NOT NULL;

-- A chunk whose vector was lost has no key and is not fresh; one that is still to be embedded has no key either.
UPDATE pipeline.chunks c SET fresh = false
FROM pipeline.documents p
WHERE c.key IS NULL AND c.fresh AND p.document_id = c.document_id AND p.live_generation = c.generation;
CREATE INDEX IF NOT EXISTS chunks_lost ON pipeline.chunks (document_id) WHERE key IS NULL AND NOT fresh;
