"""Another embedding model: nothing is left in the old collection, no receipt is too early, all stays searchable."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fltr_pipeline.errors import FltrError, SchemaDrift, StoreUnavailable, UnsupportedCapability
from fltr_pipeline.models import ReprocessMode, Stage, VectorRow
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare, compare_all
from fltr_pipeline.pipeline.reprocess import datasets_to_backfill, requeue
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.sweeper import Report, Vectors
from fltr_pipeline.pipeline.vector_collections import former
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, manifest
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline.text.model import DEFAULT_MODEL, EmbeddingModel
from fltr_pipeline_tests.moments import before
from fltr_pipeline_tests.vectors import ON_EACH_MILVUS, new_name
from fltr_pipeline_tests.world import World

BREAD = b"Flour, water, salt and yeast; knead, let it rise, bake at 220 degrees."
TREATY = b"The treaty of Westphalia ended the thirty years war in 1648."
NOTHING = Report()
_SHORT = 256
FAILURE = "SELECT error_code, error_at FROM pipeline.documents WHERE error_code IS NOT NULL"
SPENT = "SELECT count(*), sum(amount) FROM credit_transactions"
_QUESTIONS, _LOOK = (VectorStore, "search", 2), (manifest, "places", 1)
"""Between the questions to the two collections; between the answers and the look at the manifest."""


@pytest.fixture
def books(world: World) -> Dataset:
    """Two searchable documents, alone in Milvus."""
    dataset = world.dataset(world.user())
    world.upload(dataset, {"bread.txt": BREAD, "treaty.txt": TREATY})
    world.process(dataset)
    world.sweep_all()  # what other tests left in Milvus
    return dataset


@pytest.fixture
def old(world: World, books: Dataset) -> VectorStore:
    """The collection from before the change."""
    return replace(world.services.vectors)


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model that makes shorter vectors: the beginnings of the default model's."""
    folder, default = tmp_path / "model", EmbeddingModel(DEFAULT_MODEL, batch_size=1, threads=1).folder
    (folder / "1_Pooling").mkdir(parents=True)
    for path in default.iterdir():
        if path.name != "1_Pooling":
            (folder / path.name).symlink_to(path)
    pooling = (default / "1_Pooling/config.json").read_text()
    (folder / "1_Pooling/config.json").write_text(
        pooling.replace('"word_embedding_dimension": 384', f'"word_embedding_dimension": {_SHORT}')
    )
    encode = EmbeddingModel.encode

    def beginnings(self: EmbeddingModel, texts: Sequence[str]) -> list[list[float]]:
        return [vector[: self.dimension] for vector in encode(self, texts)]

    monkeypatch.setattr(EmbeddingModel, "encode", beginnings)
    return folder


@pytest.fixture
def changed(world: World, old: VectorStore, another: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VectorStore]:
    """The setting is another one from here on; the new collection."""
    use(world, monkeypatch, str(another))
    yield (new := world.services.vectors)
    assert new.collection != old.collection
    new.drop()


def use(world: World, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setenv("FLTR_EMBEDDING_MODEL", model)
    del world.services


def found(world: World, dataset: Dataset, k: int = 10) -> set[str]:
    return {h.place.filename for h in search(world.services, dataset.id, "bread", k=k)}


def stray(store: VectorStore, dataset: Dataset, key: str) -> None:
    store.insert([VectorRow(key, dataset.id, "nobody", "bread", [1.0] * store.dimension)])


@ON_EACH_MILVUS
def test_all_stays_searchable_until_it_is_in_the_new_collection_and_the_old_one_is_dropped_then(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore
) -> None:
    assert found(world, books) == {"bread.txt", "treaty.txt"}, "before the new collection is made"
    assert compare_all(world.services) == {}
    assert world.sweep_all() == NOTHING
    world.upload(books, {"bread.txt": BREAD + b" Eat it warm."})
    world.process(books)
    assert (len(set(old.keys(books.id))), len(set(changed.keys(books.id)))) == (1, 1)
    assert found(world, books) == {"bread.txt", "treaty.txt"}
    assert len(search(world.services, books.id, "bread", k=1)) == 1
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)
    world.process(books, ReprocessMode.stale)
    assert set(old.keys(books.id)) == set()
    assert found(world, books) == {"bread.txt", "treaty.txt"}
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)
    assert not old.exists()
    assert (found(world, books), world.sweep_all()) == ({"bread.txt", "treaty.txt"}, NOTHING)


@pytest.mark.parametrize(("moment", "begun"), [(_QUESTIONS, True), (_LOOK, True), (_LOOK, False)])
def test_a_document_that_the_backfill_publishes_in_the_middle_of_a_search_is_found_once(
    world: World,
    books: Dataset,
    changed: VectorStore,
    monkeypatch: pytest.MonkeyPatch,
    moment: tuple[object, str, int],
    begun: bool,
) -> None:
    if begun:
        world.upload(books, {"bread.txt": BREAD + b" Eat it warm."})
        world.process(books)
    owner, name, nth = moment
    before(monkeypatch, nth, owner, name, lambda: world.process(books, ReprocessMode.stale))
    hits = search(world.services, books.id, "bread")
    assert sorted(h.place.filename for h in hits) == ["bread.txt", "treaty.txt"]


@pytest.mark.parametrize("moment", [_QUESTIONS, _LOOK])
def test_a_document_that_is_deleted_in_the_middle_of_a_search_is_found_in_neither_collection(
    world: World, books: Dataset, changed: VectorStore, monkeypatch: pytest.MonkeyPatch, moment: tuple[object, str, int]
) -> None:
    world.upload(books, {"bread.txt": BREAD + b" Eat it warm."})
    world.process(books)
    owner, name, nth = moment
    before(monkeypatch, nth, owner, name, lambda: world.change("DELETE FROM documents"))
    assert found(world, books) == set()


def test_what_the_old_collection_is_short_of_is_not_asked_of_todays(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a publish, and before the sweep, what the old one holds counts for nothing."""
    with monkeypatch.context() as patch:
        patch.setattr("fltr_pipeline_tests.world.sweep", lambda *_: 0)
        world.process(books, ReprocessMode.stale)
    asked, ask = list[tuple[str, int]](), VectorStore.search

    def watched(store: VectorStore, *args: Any, k: int, **options: Any) -> Any:
        asked.append((store.collection, k))
        return ask(store, *args, k=k, **options)

    monkeypatch.setattr(VectorStore, "search", watched)
    assert len(search(world.services, books.id, "bread", k=2)) == 2
    assert {k for collection, k in asked if collection == old.collection} > {2}
    assert {k for collection, k in asked if collection == changed.collection} == {2}


@pytest.mark.parametrize("asked", ["by the nightly backfill", "by hand"])
def test_a_version_whose_newer_upload_failed_leaves_the_old_collection_free_and_is_searchable_all_the_while(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore, asked: str
) -> None:
    world.change("DELETE FROM documents WHERE filename = 'treaty.txt'")
    world.upload(books, {"bread.txt": b""})
    world.process(books)
    failure, spent = world.rows(FAILURE), world.auth_rows(SPENT)
    assert datasets_to_backfill(world.services) == [books.id]

    def redo() -> int:
        return requeue(world.services, books.id, ReprocessMode.stale, charge=True, retryable_only=asked != "by hand")

    assert redo() == 1
    assert found(world, books) == {"bread.txt"}, "it is searchable meanwhile"
    assert redo() == 0, "it is on its way"
    world.process(books)
    world.sweep_all()
    assert not old.exists()
    assert len(set(changed.keys(books.id))) == 1
    assert found(world, books) == {"bread.txt"}
    assert world.statuses(books) == {"bread.txt": "failed"}
    assert world.rows(FAILURE) == failure, "the failed file was not tried again"
    assert world.auth_rows(SPENT) == spent
    assert datasets_to_backfill(world.services) == []
    assert redo() == (asked == "by hand"), "the failure, where all failures are tried again"
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


@pytest.mark.parametrize("why", ["its own", "its bytes are quarantined"])
def test_what_todays_extractor_cannot_read_leaves_the_old_collection_with_the_text_that_it_has(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    ids = dict(world.rows("SELECT filename, id FROM documents"))
    monkeypatch.setattr("fltr_pipeline.text.fingerprint.CLEANER_VERSION", "another")
    del world.services
    if why == "its own":
        world.services.blobs.put(books.id, ids["bread.txt"], "bread.txt", b"")  # what today's takes for empty
    else:
        world.change(
            "INSERT INTO pipeline.quarantine (source_sha256, tried_with, source_bytes, code, tries, in_force)"
            " VALUES (%s, %s, %s, 'time_limit', 2, true)",
            hashlib.sha256(BREAD).hexdigest(), world.services.tried_with, len(BREAD),
        )  # fmt: skip
    attempts, spent = [], world.auth_rows(SPENT)
    while datasets_to_backfill(world.services):
        attempts.append(requeue(world.services, books.id, ReprocessMode.stale, charge=False, retryable_only=True))
        assert found(world, books) == {"bread.txt", "treaty.txt"}
        world.process(books)
        assert len(attempts) < 4, "each night anew"
    assert attempts == ([2, 1] if why == "its own" else [2])
    assert requeue(world.services, books.id, ReprocessMode.stale, charge=False) == 0
    world.sweep_all()
    assert not old.exists()
    assert world.statuses(books) == {"bread.txt": "ready", "treaty.txt": "ready"}
    assert found(world, books) == {"bread.txt", "treaty.txt"}
    assert world.auth_rows(SPENT) == spent
    assert requeue(world.services, books.id, ReprocessMode.all, charge=False) == 2, "who asks for all of it"


@ON_EACH_MILVUS
def test_a_document_that_is_deleted_behind_the_change_has_its_receipt_when_its_vectors_are_gone(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change("DELETE FROM documents WHERE filename = 'treaty.txt'")
    delete = VectorStore.delete_listed

    def kept_by_the_old_one(self: VectorStore, keys: Sequence[str]) -> None:
        if self.collection != old.collection:
            delete(self, keys)

    with monkeypatch.context() as patch:
        patch.setattr(VectorStore, "delete_listed", kept_by_the_old_one)
        with pytest.raises(StoreUnavailable, match="still shows"):
            world.sweep_all(list_keys=False)
    assert world.rows("SELECT verified_at FROM pipeline.deletions") == [(None,)]
    report = world.sweep_all(list_keys=False)
    assert ([r.vectors for r in report.receipts], len(set(old.keys(books.id)))) == ([1], 1)
    assert world.sweep_all() == NOTHING


def test_orphans_in_the_old_collection_are_told_and_deleted(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore
) -> None:
    stray(old, books, "stray")
    changed.ensure()
    stray(changed, books, "another-stray")
    assert compare(world.services, books.id).orphans == {"stray", "another-stray"}
    assert compare_all(world.services)[books.id].orphans == {"stray", "another-stray"}
    assert world.sweep_all() == Report(vectors=Vectors(vectors_orphaned=2))
    assert (compare_all(world.services), len(set(old.keys(books.id)))) == ({}, 2)


def test_what_the_old_collection_loses_is_told_and_made_anew_in_the_new_one(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore
) -> None:
    (lost, _) = sorted(old.keys(books.id))
    old.delete([lost])
    assert compare(world.services, books.id).missing == {lost}
    world.process(books, ReprocessMode.stale)
    assert (compare_all(world.services), len(set(changed.keys(books.id)))) == ({}, 2)


def test_a_model_that_is_no_longer_here_hides_what_it_embedded_and_nothing_else(
    world: World, books: Dataset, another: Path, changed: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(books, ReprocessMode.stale)
    world.sweep_all()
    use(world, monkeypatch, DEFAULT_MODEL)
    world.upload(books, {"bread.txt": BREAD + b" Eat it warm."})
    world.process(books)
    windows = another / "sentence_bert_config.json", another / "config.json"
    kept = [path.read_text() for path in windows]
    for path in windows:
        path.unlink()
    assert found(world, books) == {"bread.txt"}, "half of a model lies there"
    for path, text in zip(windows, kept, strict=True):
        path.write_text(text)
    pooling = another / "1_Pooling/config.json"
    pooling.write_text(pooling.read_text() + "\n")
    assert found(world, books) == {"bread.txt"}, "another one lies there now"
    another.rename(another.with_name("elsewhere"))
    assert found(world, books) == {"bread.txt"}
    assert {h.place.filename for h in search(world.services, books.id, "treaty war", mode="bm25")} == {"treaty.txt"}
    world.process(books, ReprocessMode.stale)
    world.sweep_all()
    assert (found(world, books), changed.exists()) == ({"bread.txt", "treaty.txt"}, False)


def test_the_model_of_a_collection_from_before_they_were_noted_is_noted_by_a_pass_and_by_a_set_up(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change("UPDATE pipeline.collections SET model = NULL")
    assert found(world, books) == {"bread.txt", "treaty.txt"}, "the default model is tried"
    world.process(books, ReprocessMode.stale)
    for noting in (world.sweep_all, lambda: world.process(books)):
        world.change("UPDATE pipeline.collections SET model = NULL")
        noting()
        with monkeypatch.context() as patch:
            use(world, patch, DEFAULT_MODEL)
            assert found(world, books) == {"bread.txt", "treaty.txt"}
        del world.services


def test_an_earlier_collection_that_cannot_be_searched_hides_what_lies_in_it_and_nothing_else(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.upload(books, {"bread.txt": BREAD + b" Eat it warm."})
    world.process(books)
    ask = VectorStore.search

    for error in (SchemaDrift("dropped"), UnsupportedCapability("no BM25")):

        def refused_by_the_old_one(self: VectorStore, *args: Any, error: FltrError = error, **options: Any) -> Any:
            if self.collection == old.collection:
                raise error
            return ask(self, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(VectorStore, "search", refused_by_the_old_one)
            assert found(world, books) == {"bread.txt"}


def test_a_collection_is_not_dropped_while_a_worker_may_have_read_back_there_what_it_has_yet_to_publish(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a worker with the old setting begins while a pass with the new one is at work."""
    world.process(books, ReprocessMode.stale)
    world.upload(books, {"new.txt": b"Something else."})
    with monkeypatch.context() as patch:
        use(world, patch, DEFAULT_MODEL)
        world.extract(books)
        world.stage(Plan(world.services), books)
        worker = world.worker()
        with transaction(world.services.fltr) as tx:
            (claim,) = claims.claim(
                tx, dataset_id=books.id, stage=Stage.EMBED, run_id=worker.run_id, limit=1, lease_seconds=60
            )
    del world.services
    world.sweep_all()
    assert old.exists()
    with transaction(world.services.fltr) as tx:
        claims.retry_later(tx, [claim], "put back")
    world.sweep_all()
    assert not old.exists()


def test_of_several_earlier_models_the_newer_answers_before_the_older(
    world: World, books: Dataset, changed: VectorStore, another: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.upload(books, {"treaty.txt": TREATY + b" It was signed in Osnabrueck."})
    world.process(books)
    third = shutil.copytree(another, tmp_path / "third", symlinks=True)
    pooling = third / "1_Pooling/config.json"
    pooling.write_text(pooling.read_text().replace(str(_SHORT), str(_SHORT // 2)))
    use(world, monkeypatch, str(third))
    world.upload(books, {"new.txt": b"Something else."})
    world.process(books)
    hits = search(world.services, books.id, "bread")
    assert [h.place.filename for h in hits] == ["new.txt", "treaty.txt", "bread.txt"]
    world.services.vectors.drop()


def test_behind_an_alias_todays_collection_is_not_taken_for_an_earlier_one(
    world: World, books: Dataset, milvus: Any
) -> None:
    alias = new_name()
    milvus.create_alias(world.services.vectors.collection, alias)
    assert list(former(replace(world.services, vectors=world.services.vectors.beside(alias)))) == []
    milvus.drop_alias(alias)


def test_what_is_said_to_be_of_one_model_and_was_embedded_by_another_is_mended_by_a_pass(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore, another: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.process(books, ReprocessMode.stale)
    todays = world.services.fingerprint
    world.upload(books, {"new.txt": b"Something else."})
    use(world, monkeypatch, DEFAULT_MODEL)
    world.process(books)
    world.change("UPDATE pipeline.generations SET fingerprint = %s", todays)
    assert len(set(old.keys(books.id))) == 1
    use(world, monkeypatch, str(another))
    assert found(world, books) == {"bread.txt", "new.txt", "treaty.txt"}
    report = world.sweep_all()
    assert report.vectors == Vectors(vectors_missing=1, vectors_retired=1, documents_repaired=1)
    world.process(books)
    assert (found(world, books), len(set(changed.keys(books.id)))) == ({"bread.txt", "new.txt", "treaty.txt"}, 3)
    world.sweep_all()
    assert (compare_all(world.services), world.sweep_all(), old.exists()) == ({}, NOTHING, False)
