-- Brings databases that were made before versions were kept to what the first step makes of an empty one.

ALTER TABLE pipeline.documents
    ADD COLUMN IF NOT EXISTS api_key_id text,
    ADD COLUMN IF NOT EXISTS retries integer NOT NULL DEFAULT 0;

ALTER TABLE pipeline.charges
    ADD COLUMN IF NOT EXISTS run_id text,
    ADD COLUMN IF NOT EXISTS api_key_id text,
    DROP CONSTRAINT IF EXISTS charges_state_check,
    ADD CONSTRAINT charges_state_check
        CHECK (state IN ('open', 'settled', 'released', 'refunding', 'refunded', 'payer_gone', 'pot_gone', 'conflict'));

DROP INDEX IF EXISTS pipeline.documents_live, pipeline.retired_keys_by_dataset;
CREATE INDEX documents_live ON pipeline.documents (dataset_id, document_id) WHERE live_generation IS NOT NULL;
CREATE INDEX retired_keys_by_dataset ON pipeline.retired_keys (dataset_id, key);
