-- What was published of a file is no upload, also where no generation is left that says so.

ALTER TABLE pipeline.documents
    ADD COLUMN IF NOT EXISTS published_sha256 text,       -- of the text that was last published to documents.content
    ADD COLUMN IF NOT EXISTS published_inline boolean;    -- whether that was uploaded as text

UPDATE pipeline.documents p SET published_sha256 = g.text_sha256, published_inline = g.engine = 'inline'
FROM pipeline.generations g
WHERE g.document_id = p.document_id AND g.state = 'live' AND p.published_sha256 IS NULL;
