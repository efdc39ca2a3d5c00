-- What was deleted, and the receipt that its vectors are gone.

-- One row per document that was withdrawn from search because it, its dataset or the dataset's owner is gone.
CREATE TABLE IF NOT EXISTS pipeline.deletions (
    document_id  text NOT NULL,
    dataset_id   text NOT NULL,
    cause        text NOT NULL CHECK (cause IN ('document', 'dataset', 'owner')),  -- what is gone
    vectors      integer NOT NULL,                -- keys that were named for the sweep
    found_at     timestamptz NOT NULL DEFAULT now(),
    verified_at  timestamptz,                     -- when the last of them had been read back as absent
    PRIMARY KEY (document_id, found_at)
);
-- Receipts that are still to be given.
CREATE INDEX IF NOT EXISTS deletions_unverified ON pipeline.deletions (found_at) WHERE verified_at IS NULL;

-- Whether a deleted document's keys are all swept.
CREATE INDEX IF NOT EXISTS retired_keys_by_document ON pipeline.retired_keys (document_id);
-- Keys that no run has swept for too long.
CREATE INDEX IF NOT EXISTS retired_keys_by_age ON pipeline.retired_keys (retired_at);
