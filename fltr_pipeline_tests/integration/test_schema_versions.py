"""Schema `pipeline` is brought forward: from nothing, from before versions were kept, and never backward."""

import hashlib
from collections.abc import Callable

import psycopg
import pytest

from fltr_pipeline.errors import SchemaDrift
from fltr_pipeline.stores.schema import init_fltr, versions
from fltr_pipeline.stores.schema.connection import transaction
from fltr_pipeline.stores.schema.verify import verify_fltr

NewDatabase = Callable[[], str]

SHAPE = """
SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
       pg_get_expr(d.adbin, d.adrelid)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE c.relnamespace = 'pipeline'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
FROM pg_constraint WHERE connamespace = 'pipeline'::regnamespace
UNION ALL
SELECT 'index', tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'pipeline'
ORDER BY 1, 2, 3
"""

# What the first installations have: no version, fewer columns, other indexes, a narrower CHECK.
BEFORE_VERSIONS = """
ALTER TABLE pipeline.documents DROP COLUMN api_key_id, DROP COLUMN retries, DROP COLUMN quarantine_sha256,
    DROP COLUMN error_extractor, DROP COLUMN published_sha256, DROP COLUMN published_inline;
ALTER TABLE pipeline.generations DROP COLUMN ocr_pages, DROP COLUMN ocr_confidence;
DROP INDEX pipeline.documents_suspect;
ALTER TABLE pipeline.charges DROP COLUMN run_id, DROP COLUMN api_key_id, DROP CONSTRAINT charges_state_check,
    ADD CONSTRAINT charges_state_check CHECK (state IN ('open', 'settled', 'released'));
DROP INDEX pipeline.chunks_lost, pipeline.documents_by_stage;
CREATE INDEX documents_by_stage ON pipeline.documents (dataset_id, stage) WHERE stage IS NOT NULL;
DROP INDEX pipeline.documents_live;
CREATE INDEX documents_live ON pipeline.documents (dataset_id) WHERE live_generation IS NOT NULL;
DROP INDEX pipeline.retired_keys_by_dataset;
CREATE INDEX retired_keys_by_dataset ON pipeline.retired_keys (dataset_id);
DROP TABLE pipeline.upload_keys, pipeline.quarantine;
DROP TABLE pipeline.schema_version;
INSERT INTO pipeline.documents (document_id, dataset_id, input_version, live_generation) VALUES ('kept', 'd', 'v', 1);
INSERT INTO pipeline.generations
    (document_id, generation, state, extractor, source_sha256, source_bytes, kind, engine, text_sha256, pages)
VALUES ('kept', 1, 'live', '', '', 1, 'text', 'utf-8', 'of a file', 1);
INSERT INTO pipeline.chunks (document_id, generation, ordinal, fresh, digest, page, start_offset, end_offset, tokens)
SELECT 'kept', generation, 0, true, '', 1, 0, 1, 1 FROM generate_series(1, 2) generation;
"""

STEPS = {
    1: "e944930540304689",
    2: "005bd0a50319da55",
    3: "68ca7fc0d4b5fc01",
    4: "7299e245a4cc796e",
    5: "e96c7bb051e8930d",
    6: "09f5f6ef9dc3ccbf",
    7: "57c1ae5c45144734",
    8: "620a6047b7e0c627",
}
"""Version → how the digest of its step begins: one that was released is never edited, a change is a further step."""


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with transaction(url) as connection:
        return connection.execute(query.encode()).fetchall()


def made(new_database: NewDatabase) -> str:
    url = new_database()
    init_fltr(url)
    return url


def test_a_new_database_has_every_version_and_a_second_init_adds_none(new_database: NewDatabase) -> None:
    url = made(new_database)
    init_fltr(url)
    assert rows(url, "SELECT version FROM pipeline.schema_version ORDER BY 1") == [(n,) for n in STEPS]


def test_released_steps_are_as_they_were() -> None:
    assert {n: hashlib.sha256(sql).hexdigest()[:16] for n, sql in versions.steps().items()} == STEPS


def test_a_database_from_before_versions_becomes_what_a_new_one_is_and_keeps_its_rows(
    new_database: NewDatabase,
) -> None:
    new, old = made(new_database), made(new_database)
    with transaction(old) as connection:
        connection.execute(BEFORE_VERSIONS)
    assert rows(old, SHAPE) != rows(new, SHAPE)
    assert [f.subject for f in verify_fltr(old).harmful] == ["schema pipeline"]
    init_fltr(old)
    assert rows(old, SHAPE) == rows(new, SHAPE)
    kept = "SELECT document_id, retries, published_sha256, published_inline FROM pipeline.documents"
    assert rows(old, kept) == [("kept", 0, "of a file", False)]
    assert rows(old, "SELECT generation, fresh FROM pipeline.chunks ORDER BY 1") == [(1, False), (2, True)], (
        "the live one has lost its vector, the other is still to be embedded"
    )
    assert verify_fltr(old).conforms


def test_each_step_may_be_run_again_without_harm(new_database: NewDatabase) -> None:
    url = made(new_database)
    before = rows(url, SHAPE)
    with transaction(url) as connection:
        for sql in versions.steps().values():
            connection.execute(sql)
            connection.execute(sql)
    assert rows(url, SHAPE) == before


def test_a_step_that_fails_leaves_the_version_and_the_shape_as_they_were(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = made(new_database)
    before = rows(url, SHAPE)
    with monkeypatch.context() as patch:
        new = versions.newest() + 1
        broken = {**versions.steps(), new: b"ALTER TABLE pipeline.charges ADD COLUMN n int", new + 1: b"SELECT 1 / 0"}
        patch.setattr(versions, "steps", lambda: broken)
        with pytest.raises(psycopg.errors.DivisionByZero):
            init_fltr(url)
    assert rows(url, SHAPE) == before
    assert verify_fltr(url).conforms


def test_a_program_that_is_older_than_the_database_changes_nothing(new_database: NewDatabase) -> None:
    url = made(new_database)
    with transaction(url) as connection:
        connection.execute("INSERT INTO pipeline.schema_version (version) VALUES (99)")
    with pytest.raises(SchemaDrift, match="upgrade this one"):
        init_fltr(url)
    (drift,) = verify_fltr(url).harmful
    assert (drift.subject, drift.found) == ("schema pipeline", "version 99")
    assert "newer" in drift.mend
