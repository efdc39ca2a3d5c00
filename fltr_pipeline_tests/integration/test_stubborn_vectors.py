"""Vectors that Milvus does not delete, or a collection that it does not give: told at the end, in nobody's way."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pytest

from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import VectorRow
from fltr_pipeline.pipeline import embed
from fltr_pipeline.pipeline.sweeper import Report, Vectors, sweep_all
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import manifest
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.shelves import Encoded, Shelves, is_at_rest
from fltr_pipeline_tests.vectors import new_name
from fltr_pipeline_tests.world import World


@pytest.fixture
def three(world: World, shelves: Shelves, encoded: Encoded) -> list[Dataset]:
    """Datasets with searchable documents, in the order of the sweep."""
    third = world.dataset(shelves.other_payer, "third")
    for dataset in (shelves.other, third):
        world.upload(dataset, {"one.txt": b"The text of one.", "two.txt": b"The text of two."})
        world.process(dataset)
    return sorted((shelves.books, shelves.other, third), key=lambda dataset: dataset.id)


def kept(patch: pytest.MonkeyPatch, keys: Collection[str]) -> None:
    """Milvus goes on showing them."""
    delete = VectorStore.delete_listed
    patch.setattr(
        VectorStore, "delete_listed", lambda self, given: delete(self, [key for key in given if key not in keys])
    )


def documents(world: World, query: str) -> set[str]:
    return {document_id for (document_id,) in world.rows(query)}


def stray(world: World, dataset: Dataset, key: str, store: VectorStore | None = None) -> None:
    vector = [1.0] + [0.0] * (world.services.vectors.dimension - 1)
    (store or world.services.vectors).insert([VectorRow(key, dataset.id, "nobody", "words", vector)])


def done_by_a_pass(world: World) -> tuple[Report, str]:
    """What it did, and how it ended."""
    report, ended = Report(), ""
    try:
        for part in sweep_all(world.services, world.billing, list_keys=True):
            report += part
    except StoreUnavailable as error:
        ended = str(error)
    return report, ended


def test_a_vector_that_stays_keeps_its_documents_receipt_alone(
    world: World, three: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "_SWEEP", 1)
    first, second, third = three
    kept_key = min(world.keys(first))
    ((of_kept,),) = world.rows("SELECT document_id FROM pipeline.chunks WHERE key = %s", kept_key)
    (repaired, *_) = sorted(documents(world, f"SELECT id FROM documents WHERE dataset_id = '{third.id}'"))
    world.change("DELETE FROM documents WHERE id <> %s", repaired)
    ((given_up,),) = world.rows("SELECT count(*) FROM pipeline.chunks WHERE document_id = %s", repaired)
    world.change("UPDATE pipeline.chunks SET key = NULL, fresh = false WHERE document_id = %s", repaired)
    stray(world, second, "stray")
    gone = documents(world, "SELECT document_id FROM pipeline.documents") - {repaired}
    with monkeypatch.context() as patch:
        kept(patch, {kept_key})
        report, ended = done_by_a_pass(world)
    assert f"still shows 1 of the deleted vectors (dataset {first.id}: 1)" in ended
    assert {r.document_id for r in report.receipts} == gone - {of_kept}
    assert (report.vectors.documents_repaired, report.vectors.vectors_orphaned) == (1, given_up + 1)
    assert (world.keys(first), world.keys(second)) == ({kept_key}, set())
    report, ended = done_by_a_pass(world)
    assert ([r.document_id for r in report.receipts], report.vectors.vectors_retired, ended) == ([of_kept], 1, "")
    assert world.keys(first) == set()


def test_a_worker_sweeps_what_goes_and_tells_of_what_stays(
    world: World, three: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "_SWEEP", 1)
    dataset = three[0]
    keys = sorted(world.keys(dataset))
    retire = "INSERT INTO pipeline.retired_keys SELECT unnest(%s::text[]), %s, 'x'"
    world.change(retire, keys, dataset.id)
    kept(monkeypatch, {keys[0]})
    with pytest.raises(StoreUnavailable, match=f"1 of the deleted vectors .dataset {dataset.id}: 1"):
        embed.sweep(world.services, dataset.id)
    assert world.keys(dataset) == {keys[0]}
    assert world.rows("SELECT key FROM pipeline.retired_keys") == [(keys[0],)]


def test_orphans_that_stay_are_told_at_the_end(world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch) -> None:
    stray(world, shelves.books, "goes")
    stray(world, shelves.books, "stays")
    world.services.vectors.delete(lost := sorted(world.keys(shelves.books) - {"goes", "stays"})[:1])
    with monkeypatch.context() as patch:
        real = VectorStore.datasets_of

        def shown(self: VectorStore, keys: Sequence[str]) -> dict[str, str]:
            return real(self, keys) | ({"stays": shelves.books.id} if "stays" in keys else {})

        patch.setattr(VectorStore, "datasets_of", shown)
        report, ended = done_by_a_pass(world)
    assert f"still shows 1 of the deleted vectors (dataset {shelves.books.id}: 1)" in ended
    assert report.vectors == Vectors(
        vectors_orphaned=1, vectors_missing=len(lost), documents_repaired=1, vectors_retired=1
    )
    world.process(shelves.books)
    world.sweep_all()
    assert is_at_rest(world)


@pytest.fixture
def former(world: World, shelves: Shelves) -> Iterator[VectorStore]:
    """The collection of an earlier model, with a vector that nobody names."""
    store = world.services.vectors.beside(new_name())
    store.ensure()
    with transaction(world.services.fltr) as tx:
        manifest.note_collection(tx, store.collection, "an earlier one")
    stray(world, shelves.books, "of-the-former", store)
    yield store
    store.drop()


def test_an_earlier_collection_that_does_not_answer_keeps_todays_from_nothing_but_receipts(
    world: World, shelves: Shelves, former: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change("DELETE FROM documents WHERE filename = 'a.txt'")
    lost = world.rows(
        "SELECT min(key) FROM pipeline.chunks c JOIN documents d ON d.id = c.document_id WHERE d.filename = 'b.txt'"
    )[0][0]
    world.services.vectors.delete([lost])
    stray(world, shelves.books, "stray")
    with monkeypatch.context() as patch:
        for name in ("_query", "_rows"):
            real = getattr(VectorStore, name)

            def refused(self: VectorStore, *args: Any, real: Callable[..., Any] = real, **options: Any) -> Any:
                if self.collection == former.collection:
                    raise StoreUnavailable("it can't be loaded")
                return real(self, *args, **options)

            patch.setattr(VectorStore, name, refused)
        report, ended = done_by_a_pass(world)
    assert "it can't be loaded" in ended
    assert report.receipts == ()
    assert report.withdrawn.documents_deleted == 1
    assert (report.vectors.vectors_orphaned, report.vectors.vectors_missing) == (1, 1)
    assert report.vectors.documents_repaired == 1
    assert len(world.sweep_all().receipts) == 1
    assert not former.exists()
