"""A short pass costs what there is to end: not a look at all documents, nor at the whole ledger."""

from collections.abc import Iterator

import pytest

from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.pipeline import deletion, reconcile, sweeper
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.fltr.deleted import Page
from fltr_pipeline.stores.fltr.manifest import LivePage
from fltr_pipeline_tests.world import World


@pytest.fixture
def books(world: World) -> Dataset:
    """Eight searchable documents, alone in Milvus."""
    dataset = world.dataset(world.user())
    world.upload(dataset, {f"{n}.txt": f"The text of file number {n}.".encode() for n in range(8)})
    world.process(dataset)
    world.sweep_all()  # what other tests left in Milvus
    return dataset


def documents(world: World) -> list[str]:
    """Their ids, in order."""
    return sorted(document_id for (document_id,) in world.rows("SELECT id FROM documents"))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids behind which documents were looked at; one at a time, and no further than something is found."""
    found: list[str] = []
    look = deletion.page

    def looking(services: Services, after: str) -> Page:
        found.append(after)
        return look(services, after)

    monkeypatch.setattr(deletion, "page", looking)
    monkeypatch.setattr(deletion, "PAGE", 1)
    monkeypatch.setattr(sweeper, "_LOOK_SECONDS", 0.0)
    return found


def test_a_short_pass_looks_no_further_than_it_finds_something_and_never_at_the_whole_ledger(
    world: World, books: Dataset, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = documents(world)
    world.change("DELETE FROM documents WHERE id = ANY(%s)", [every[2], every[3], every[6]])

    def whole(*_: object) -> None:
        pytest.fail("the whole ledger was read")

    looks.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "open_holds", whole)
        assert world.sweep_all(list_keys=False, after=every[1]).withdrawn == Withdrawn(documents_deleted=2)
    assert looks == every[1:4], "two, and one behind them"
    assert world.sweep_all().withdrawn == Withdrawn(documents_deleted=1)
    assert world.sweep_all().nothing


def test_what_is_gone_with_its_dataset_is_found_without_a_look_at_each_document(
    world: World, books: Dataset, looks: list[str]
) -> None:
    kept = world.dataset(world.user(), "kept")
    ids = world.upload(books, {"moved.txt": b"Another text.", "parked.txt": b"A third text."})
    world.extract(books)
    world.change("UPDATE documents SET dataset_id = %s WHERE id = %s", kept.id, ids["moved.txt"])
    world.change("DELETE FROM datasets WHERE id = %s", books.id)
    looks.clear()
    report = world.sweep_all(list_keys=False, after="~")
    assert report.withdrawn == Withdrawn(documents_deleted=9, datasets_deleted=1, documents_moved=1)
    assert looks == ["~"]
    assert (world.keys(books), world.statuses(kept)) == (set(), {"moved.txt": "uploaded"})


def test_a_deleted_dataset_is_not_forgotten_before_its_last_document(
    world: World, books: Dataset, looks: list[str]
) -> None:
    in_hand = documents(world)[0]
    lease = "UPDATE pipeline.documents SET stage = %s, lease_until = now() + %s::interval WHERE document_id = %s"
    world.change(lease, "embed", "1 h", in_hand)
    world.change("DELETE FROM datasets WHERE id = %s", books.id)
    assert deletion.waiting(world.services)
    assert world.sweep_all(list_keys=False, after="~").withdrawn == Withdrawn(documents_deleted=7)
    assert not deletion.waiting(world.services), "no pass by the minute while a worker has the last one in hand"
    world.change(lease, None, "-1 s", in_hand)
    assert deletion.waiting(world.services)
    looks.clear()
    report = world.sweep_all(list_keys=False, after="~")
    assert report.withdrawn == Withdrawn(documents_deleted=1, datasets_deleted=1)
    assert (looks, world.keys(books)) == (["~"], set())


def test_no_deleted_dataset_keeps_a_short_pass_from_the_next_one(world: World, looks: list[str]) -> None:
    datasets = [world.dataset(world.user()) for _ in range(2)]
    for dataset in datasets:
        world.upload(dataset, {f"{n}.txt": f"Number {n} of {dataset.id}.".encode() for n in range(2)})
        world.process(dataset)
    kept = world.dataset(world.user(), "kept")
    for dataset in datasets:  # the first of each is elsewhere, and not yet due: nothing is found there
        ((first,),) = world.rows("SELECT min(id::text) FROM documents WHERE dataset_id = %s", dataset.id)
        world.change("UPDATE documents SET dataset_id = %s WHERE id = %s", kept.id, first)
    world.change("UPDATE pipeline.documents SET retry_at = now() + interval '1 h'")
    world.change("DELETE FROM datasets WHERE id = ANY(%s)", [d.id for d in datasets])
    report = world.sweep_all(list_keys=False, after="~")
    assert report.withdrawn == Withdrawn(documents_deleted=2, datasets_deleted=2)


def test_while_all_keys_are_listed_documents_are_looked_at_in_turn(
    world: World, books: Dataset, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "_SHORT_PASS_SECONDS", -1.0)
    gone, listed = documents(world)[2], reconcile.live_pages

    def deleted_meanwhile(services: Services, dataset_id: str) -> Iterator[LivePage]:
        world.change("DELETE FROM documents WHERE id = %s", gone)
        yield from [*listed(services, dataset_id)] * 4  # as many looks

    monkeypatch.setattr(reconcile, "live_pages", deleted_meanwhile)
    assert world.sweep_all().withdrawn == Withdrawn(documents_deleted=1)
    assert world.rows("SELECT 1 FROM pipeline.documents WHERE document_id = %s", gone) == []
