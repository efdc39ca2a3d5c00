"""A row that the application holds locked keeps a pass from nothing but that document, which the next one ends."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from fltr_pipeline.pipeline import sweeper
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline_tests.bills import Desk
from fltr_pipeline_tests.shelves import Shelves, found, is_at_rest, move
from fltr_pipeline_tests.world import World

_PATIENCE = 30.0


class Killed(BaseException):
    """The worker dies here."""


def dies(*_: object) -> None:
    raise Killed


@contextmanager
def in_use(world: World, document_id: str) -> Iterator[None]:
    """The application has written in a document's row, and has not committed."""
    with psycopg.connect(world.fltr_admin) as application:
        application.execute("UPDATE documents SET filename = filename WHERE id = %s", (document_id,))
        yield


def sweep(world: World, *, list_keys: bool) -> sweeper.Report:
    """Told if it waits: whoever holds the row lets it go first."""
    threads = ThreadPoolExecutor(1)
    pass_ = threads.submit(world.sweep_all, list_keys=list_keys)
    threads.shutdown(wait=False)
    return pass_.result(_PATIENCE)


def is_decided(world: World, shelves: Shelves) -> str:
    world.upload(shelves.books, {"a.txt": b"Another text."})
    world.extract(shelves.books)
    world.stage(Plan(world.services), shelves.books)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Billing, "settle", dies)
        with pytest.raises(Killed):
            world.stage(Embed(world.services), shelves.books)
    return shelves.ids["a.txt"]


def is_decided_and_uploaded_anew(world: World, shelves: Shelves) -> str:
    document_id = is_decided(world, shelves)
    world.change("UPDATE documents SET status = 'uploaded' WHERE id = %s", document_id)
    return document_id


def has_lost_a_vector(world: World, shelves: Shelves) -> str:
    document_id = shelves.ids["a.txt"]
    world.change(
        "UPDATE pipeline.chunks SET key = NULL, fresh = false WHERE document_id = %s AND ordinal = 0", document_id
    )
    return document_id


def was_moved(world: World, shelves: Shelves) -> str:
    move(world, shelves.ids["a.txt"], shelves.other)
    return shelves.ids["a.txt"]


def has_no_owner(world: World, shelves: Shelves) -> str:
    world.change("UPDATE datasets SET user_id = 'nobody' WHERE id = %s", shelves.books.id)
    return shelves.ids["a.txt"]


def has_an_owner_again(world: World, shelves: Shelves) -> str:
    document_id = has_no_owner(world, shelves)
    world.sweep_all(list_keys=False)
    world.change("UPDATE datasets SET user_id = %s WHERE id = %s", shelves.payer.user_id, shelves.books.id)
    return document_id


SCENES = [
    is_decided, is_decided_and_uploaded_anew, has_lost_a_vector, was_moved, has_no_owner, has_an_owner_again,
]  # fmt: skip


@pytest.mark.parametrize("list_keys", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_a_pass_waits_for_nobody(
    world: World, shelves: Shelves, scene: Callable[[World, Shelves], str], list_keys: bool
) -> None:
    document_id = scene(world, shelves)
    dead = Desk(world, shelves.other_payer, shelves.other)
    (claim,) = dead.claim("d.txt")
    dead.hold(claim)
    dead.an_hour_passes()
    with in_use(world, document_id):
        sweep(world, list_keys=list_keys)
        ended = world.rows("SELECT state FROM pipeline.charges WHERE subject_id = %s", claim.document_id)
        assert ended == [("released",)]
    dead.an_hour_passes()
    left_for_a_worker = scene is is_decided_and_uploaded_anew
    assert sweep(world, list_keys=list_keys).nothing == left_for_a_worker
    world.change("UPDATE documents SET status = 'failed' WHERE id = %s", claim.document_id)
    for dataset in (shelves.books, shelves.other):
        world.process(dataset)
    world.sweep_all()
    assert is_at_rest(world)
    if scene is has_no_owner:
        assert found(world, shelves.books) == {}
    elif scene is was_moved:
        assert found(world, shelves.other).keys() == {"a.txt"}
    else:
        assert found(world, shelves.books).keys() == {"a.txt", "b.txt"}
