"""A receipt and a worker that names, at that very moment, what it inserted too late: whoever is first."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection

from fltr_pipeline.models import VectorRow
from fltr_pipeline.pipeline import deletion, embed
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import deleted, generations
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.generations import FreshChunk
from fltr_pipeline_tests.moments import wait_for
from fltr_pipeline_tests.shelves import Shelves
from fltr_pipeline_tests.world import World

LATE = "late"
_WAITING = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def document_id(world: World, shelves: Shelves) -> str:
    """A deleted document; a worker that hung has just put a vector of it into Milvus."""
    found = shelves.ids["a.txt"]
    world.change("DELETE FROM documents WHERE id = %s", found)
    vector = [1.0] + [0.0] * (world.services.vectors.dimension - 1)
    world.services.vectors.insert([VectorRow(LATE, shelves.books.id, found, "a text", vector)])
    return found


def name(tx: Connection, shelves: Shelves, document_id: str) -> None:
    """What the worker does when it finds itself replaced."""
    replaced = Claim(document_id, shelves.books.id, "a.txt", 1, None, -1, "", billable=True, attempts=0)
    generations.held_behind_inserts(tx, [replaced], [FreshChunk(document_id, LATE, 0, 1, 1)])


@contextmanager
def being_named(world: World, shelves: Shelves, document_id: str) -> Iterator[None]:
    """The worker's transaction, until it is committed."""
    with transaction(world.services.fltr) as tx:
        name(tx, shelves, document_id)
        yield


def receipts(world: World) -> list[str]:
    given = world.rows("SELECT document_id FROM pipeline.deletions WHERE verified_at IS NOT NULL")
    return [document_id for (document_id,) in given]


def is_told_only_when_the_late_vector_is_gone(world: World, shelves: Shelves, document_id: str) -> bool:
    told_too_early = receipts(world)
    assert len(world.sweep_all(list_keys=False).receipts) == 1
    return (told_too_early, receipts(world), LATE in world.keys(shelves.books)) == ([], [document_id], False)


def test_no_receipt_is_given_while_a_late_vector_is_being_named(
    world: World, shelves: Shelves, document_id: str
) -> None:
    list(deletion.withdraw(world.services))
    embed.sweep(world.services, shelves.books.id)
    with being_named(world, shelves, document_id):
        assert deletion.receipts(world.services) == []
    assert is_told_only_when_the_late_vector_is_gone(world, shelves, document_id)


def test_a_receipt_that_is_being_given_is_taken_back_by_who_names_a_late_vector(
    world: World, shelves: Shelves, document_id: str
) -> None:
    list(deletion.withdraw(world.services))
    embed.sweep(world.services, shelves.books.id)

    def worker() -> None:
        with being_named(world, shelves, document_id):
            pass

    with ThreadPoolExecutor() as threads:
        with transaction(world.services.fltr) as tx:
            assert len(deleted.verify(tx)) == 1
            late = threads.submit(worker)
            wait_for(lambda: late.done() or bool(world.rows(_WAITING)))
        late.result()
    assert is_told_only_when_the_late_vector_is_gone(world, shelves, document_id)


def test_a_document_whose_late_vector_is_being_named_is_withdrawn_behind_that(
    world: World, shelves: Shelves, document_id: str
) -> None:
    """Its receipt is not there to be taken back before it is withdrawn."""
    with being_named(world, shelves, document_id):
        assert world.sweep_all(list_keys=False).nothing
    assert is_told_only_when_the_late_vector_is_gone(world, shelves, document_id)
