-- What is parked is claimed in the index's own order; before, each claim read and sorted all of a stage. Not by
-- `credits_needed` itself: the sensor's look at who awaits credits would read this index, and so all that is parked.

DROP INDEX IF EXISTS pipeline.documents_by_stage;
CREATE INDEX documents_by_stage ON pipeline.documents (dataset_id, stage, coalesce(credits_needed, 0), document_id)
    WHERE stage IS NOT NULL;
