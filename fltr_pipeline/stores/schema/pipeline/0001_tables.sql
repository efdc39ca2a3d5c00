-- Schema `pipeline` of the `fltr` database: what the pipeline must remember beyond the specification's three tables.
-- Ours alone. Ids are plain text and there is no foreign key to `public`: a deletion there must not erase what
-- closes a hold or names the vectors to sweep.
-- The first step. A step that was released is never edited: what changes is a further one (see `versions.py`).

-- One row per dataset whose set-up is done.
CREATE TABLE IF NOT EXISTS pipeline.datasets (
    dataset_id   text PRIMARY KEY,
    user_id      text NOT NULL,
    collection   text NOT NULL,
    set_up_at    timestamptz NOT NULL DEFAULT now()
);

-- One row per document seen: what is live, what is in flight, who holds it.
CREATE TABLE IF NOT EXISTS pipeline.documents (
    document_id     text PRIMARY KEY,
    dataset_id      text NOT NULL,
    input_version   text NOT NULL,                -- documents.updated_at as it was when the input was claimed
    generation      integer NOT NULL DEFAULT 1,   -- of the attempt in flight, or of the last one
    live_generation integer,                      -- what search sees; NULL: nothing yet
    stage           text CHECK (stage IN ('extract', 'plan', 'embed')),  -- next work; NULL: nothing to do
    billable        boolean NOT NULL DEFAULT true,
    fence           bigint NOT NULL DEFAULT 1,    -- rises with every claim; a write with an old one changes nothing
    run_id          text NOT NULL DEFAULT '',
    lease_until     timestamptz,                  -- NULL: nobody works on it
    job_id          text,
    api_key_id      text,                         -- digest of the key that the input was uploaded with
    attempts        integer NOT NULL DEFAULT 0,   -- workers that died at it, in a row
    retries         integer NOT NULL DEFAULT 0,   -- transient failures in a row: the next wait is twice as long
    retry_at        timestamptz,
    credits_needed  integer,                      -- set while it awaits credits
    pot_kind        text,
    pot_id          text,
    error_code      text,
    error_message   text,
    error_at        timestamptz
);
-- Claims and the sensor: work that waits, by dataset and stage.
CREATE INDEX IF NOT EXISTS documents_by_stage ON pipeline.documents (dataset_id, stage) WHERE stage IS NOT NULL;
-- Heartbeats, and the leases of a run that died.
CREATE INDEX IF NOT EXISTS documents_leased ON pipeline.documents (run_id) WHERE lease_until IS NOT NULL;
-- The sensor: whose balance to look at.
CREATE INDEX IF NOT EXISTS documents_awaiting ON pipeline.documents (pot_kind, pot_id) WHERE credits_needed IS NOT NULL;
-- Manifest of a dataset, stale documents of a dataset; whether it has any.
CREATE INDEX IF NOT EXISTS documents_live ON pipeline.documents (dataset_id, document_id)
    WHERE live_generation IS NOT NULL;

-- The API key of an upload, by its digest, from the uploader: written in the transaction that sets `uploaded`. The claim
-- moves it to pipeline.documents. The key itself is in no table of this database.
CREATE TABLE IF NOT EXISTS pipeline.upload_keys (
    document_id  text PRIMARY KEY,
    api_key_id   text NOT NULL CHECK (api_key_id ~ '^[0-9a-f]{64}$')
);

-- One row per version of a document's text and how it was made.
CREATE TABLE IF NOT EXISTS pipeline.generations (
    document_id   text NOT NULL,
    generation    integer NOT NULL,
    state         text NOT NULL CHECK (state IN ('staged', 'planned', 'indexed', 'live')),
    extractor     text NOT NULL,                  -- fingerprint of what made the text
    fingerprint   text,                           -- fingerprint of the whole configuration, from the plan on
    source_sha256 text NOT NULL,
    source_bytes  bigint NOT NULL,
    kind          text NOT NULL,
    engine        text NOT NULL,
    text          text,                           -- staged; moves to documents.content when published
    text_sha256   text NOT NULL,
    pages         integer NOT NULL,
    blank_pages   integer[] NOT NULL DEFAULT '{}',
    chunks        integer,
    tokens        integer,
    fresh_chunks  integer,                        -- to be embedded; the rest keep their keys
    fresh_tokens  integer,
    created_at    timestamptz NOT NULL DEFAULT now(),
    published_at  timestamptz,
    PRIMARY KEY (document_id, generation)
);

-- The manifest: which vector stands for which slice of which generation. The truth; Milvus is an index of it.
CREATE TABLE IF NOT EXISTS pipeline.chunks (
    document_id  text NOT NULL,
    generation   integer NOT NULL,
    ordinal      integer NOT NULL,
    key          text,                            -- NULL until a worker embeds it; never reused
    fresh        boolean NOT NULL,                -- embedded by this generation, not kept from the one before
    digest       text NOT NULL,                   -- sha256 of the text
    page         integer NOT NULL,
    start_offset integer NOT NULL,                -- characters of documents.content
    end_offset   integer NOT NULL,
    tokens       integer NOT NULL,
    PRIMARY KEY (document_id, generation, ordinal),
    CHECK (0 <= start_offset AND start_offset < end_offset)
);
-- Search: from a hit's key to its place.
CREATE INDEX IF NOT EXISTS chunks_by_key ON pipeline.chunks (key);

-- Keys that no generation holds any more and that may still lie in Milvus.
CREATE TABLE IF NOT EXISTS pipeline.retired_keys (
    key         text PRIMARY KEY,
    dataset_id  text NOT NULL,
    document_id text NOT NULL,
    retired_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS retired_keys_by_dataset ON pipeline.retired_keys (dataset_id, key);

-- What one op on one generation of one document (or one dataset) is to cost; written before the ledger is touched.
CREATE TABLE IF NOT EXISTS pipeline.charges (
    subject_id    text NOT NULL,                  -- document id; dataset id for dataset_setup
    op            text NOT NULL,
    generation    integer NOT NULL,
    sequence      integer NOT NULL DEFAULT 1,     -- rises when a hold was released and the work is tried again
    dataset_id    text NOT NULL,
    amount        integer NOT NULL CHECK (amount >= 0),
    user_id       text NOT NULL,
    pot_kind      text NOT NULL CHECK (pot_kind IN ('user', 'team', 'api_key')),
    pot_id        text NOT NULL,
    price_version text NOT NULL,
    unit_price    integer NOT NULL,
    job_id        text,
    run_id        text,
    api_key_id    text,
    state         text NOT NULL DEFAULT 'open'
                  CHECK (state IN ('open', 'settled', 'released', 'refunding', 'refunded', 'payer_gone', 'pot_gone',
                                   'conflict')),
    charged       integer,
    created_at    timestamptz NOT NULL DEFAULT now(),
    closed_at     timestamptz,
    PRIMARY KEY (subject_id, op, generation)
);
-- Sweeping charges whose work was abandoned.
CREATE INDEX IF NOT EXISTS charges_open ON pipeline.charges (dataset_id) WHERE state = 'open';
-- Sweeping what is to be given back and was not yet.
CREATE INDEX IF NOT EXISTS charges_refunding ON pipeline.charges (dataset_id) WHERE state = 'refunding';
