"""Another embedding model: nothing is left in the old collection, no receipt is too early, all stays searchable."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import ReprocessMode, VectorRow
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare, compare_all
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.sweeper import Report, Vectors
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline.text.model import DEFAULT_MODEL, EmbeddingModel
from fltr_pipeline_tests.vectors import ON_EACH_MILVUS
from fltr_pipeline_tests.world import World

BREAD = b"Flour, water, salt and yeast; knead, let it rise, bake at 220 degrees."
TREATY = b"The treaty of Westphalia ended the thirty years war in 1648."
NOTHING = Report()


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
def another(tmp_path: Path) -> Path:
    """The folder of a model that makes the same vectors, and is another one by its files."""
    folder, default = tmp_path / "model", EmbeddingModel(DEFAULT_MODEL, batch_size=1, threads=1).folder
    folder.mkdir()
    for path in default.iterdir():
        (folder / path.name).symlink_to(path)
    modules = folder / "modules.json"
    text = modules.read_text()
    modules.unlink()
    modules.write_text(text + "\n")
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


def stray(world: World, store: VectorStore, dataset: Dataset, key: str) -> None:
    vector = world.services.model.encode(["bread"])[0]
    store.insert([VectorRow(key, dataset.id, "nobody", "bread", vector)])


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


@ON_EACH_MILVUS
def test_a_document_that_is_deleted_behind_the_change_has_its_receipt_when_its_vectors_are_gone(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change("DELETE FROM documents WHERE filename = 'treaty.txt'")
    delete = VectorStore.delete

    def kept_by_the_old_one(self: VectorStore, keys: Sequence[str]) -> None:
        if self.collection != old.collection:
            delete(self, keys)

    with monkeypatch.context() as patch:
        patch.setattr(VectorStore, "delete", kept_by_the_old_one)
        with pytest.raises(StoreUnavailable, match="still shows"):
            world.sweep_all(list_keys=False)
    assert world.rows("SELECT verified_at FROM pipeline.deletions") == [(None,)]
    report = world.sweep_all(list_keys=False)
    assert ([r.vectors for r in report.receipts], len(set(old.keys(books.id)))) == ([1], 1)
    assert world.sweep_all() == NOTHING


def test_orphans_in_the_old_collection_are_told_and_deleted(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore
) -> None:
    stray(world, old, books, "stray")
    changed.ensure()
    stray(world, changed, books, "another-stray")
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
    modules = another / "modules.json"
    modules.write_text(modules.read_text() + "\n")  # another one lies there now
    assert found(world, books) == {"bread.txt"}
    (another / "modules.json").unlink()
    another.rename(another.with_name("elsewhere"))
    assert found(world, books) == {"bread.txt"}
    world.process(books, ReprocessMode.stale)
    world.sweep_all()
    assert (found(world, books), changed.exists()) == ({"bread.txt", "treaty.txt"}, False)


def test_what_was_planned_for_one_model_and_embedded_by_another_is_mended_by_a_pass(
    world: World, books: Dataset, old: VectorStore, changed: VectorStore, another: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a worker with the old setting is still at work."""
    world.process(books, ReprocessMode.stale)
    world.upload(books, {"new.txt": b"Something else."})
    world.extract(books)
    world.stage(Plan(world.services), books)
    use(world, monkeypatch, DEFAULT_MODEL)
    world.services.vectors.ensure()
    world.stage(Embed(world.services), books)
    assert len(set(old.keys(books.id))) == 1
    use(world, monkeypatch, str(another))
    assert found(world, books) == {"bread.txt", "new.txt", "treaty.txt"}
    report = world.sweep_all()
    assert report.vectors == Vectors(vectors_missing=1, vectors_retired=1, documents_repaired=1)
    world.process(books)
    assert (found(world, books), len(set(changed.keys(books.id)))) == ({"bread.txt", "new.txt", "treaty.txt"}, 3)
    world.sweep_all()
    assert (compare_all(world.services), world.sweep_all(), old.exists()) == ({}, NOTHING, False)
