-- Which pages' text was read from their pictures, and what to try again when that becomes possible.

ALTER TABLE pipeline.generations
    ADD COLUMN IF NOT EXISTS ocr_pages integer[] NOT NULL DEFAULT '{}',      -- numbers, from 1
    ADD COLUMN IF NOT EXISTS ocr_confidence real[] NOT NULL DEFAULT '{}';    -- of each of them, from 0 to 1

-- The extractor that could not read the document; NULL for other failures, and for those from before this step.
ALTER TABLE pipeline.documents ADD COLUMN IF NOT EXISTS error_extractor text;
