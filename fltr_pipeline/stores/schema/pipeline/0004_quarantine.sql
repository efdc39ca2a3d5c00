-- Contents that end their workers or parsers are not tried for ever; what a dead worker left is found without a search.

-- One row per content (by its bytes) and configuration that it failed under. Names no document: whoever uploads the same
-- bytes is told of the content alone.
CREATE TABLE IF NOT EXISTS pipeline.quarantine (
    source_sha256 text NOT NULL,
    tried_with    text NOT NULL,                  -- fingerprint of all that an attempt's outcome depends on but the bytes
    source_bytes  bigint NOT NULL,
    code          text NOT NULL,                  -- how it failed last
    tries         integer NOT NULL,
    in_force      boolean NOT NULL,               -- it is not tried again under this configuration
    failed_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source_sha256, tried_with)
);
-- Extraction: which of these sizes are worth a look, before any byte is read.
CREATE INDEX IF NOT EXISTS quarantine_by_size ON pipeline.quarantine (tried_with, source_bytes) WHERE in_force;

-- Of the document's last failure that the quarantine knows.
ALTER TABLE pipeline.documents ADD COLUMN IF NOT EXISTS quarantine_sha256 text;

-- Claims: documents that workers died at, or still hold.
CREATE INDEX IF NOT EXISTS documents_suspect ON pipeline.documents (dataset_id, stage, attempts, document_id)
    WHERE attempts > 0 OR (lease_until IS NOT NULL AND run_id <> '');
