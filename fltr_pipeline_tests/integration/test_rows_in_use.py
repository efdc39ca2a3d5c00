"""A row that the application holds locked keeps a pass from nothing but that document, which the next one ends."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline import deletion, sweeper
from fltr_pipeline.pipeline.billing import Billing, hold_of
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.expiry import Swept
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, expired, leases, manifest
from fltr_pipeline_tests.bills import Desk
from fltr_pipeline_tests.moments import Killed, before, dies, wait_for
from fltr_pipeline_tests.shelves import Shelves, found, is_at_rest, move
from fltr_pipeline_tests.world import World

HOW = {
    "writes": b"UPDATE documents SET filename = filename WHERE id = %s",
    "deletes": b"DELETE FROM documents WHERE id = %s",
}
_PATIENCE = 30.0
_BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@contextmanager
def in_use(world: World, document_id: str, how: str) -> Iterator[None]:
    """The application has done something with a document's row, and neither commits nor rolls back."""
    with psycopg.connect(world.fltr_admin) as application:
        application.execute(HOW[how], (document_id,))
        yield
        application.rollback()


def sweep(world: World, *, list_keys: bool) -> sweeper.Report:
    """Told if it waits: whoever holds the row lets it go first."""
    threads = ThreadPoolExecutor(1)
    pass_ = threads.submit(world.sweep_all, list_keys=list_keys)
    threads.shutdown(wait=False)
    return pass_.result(_PATIENCE)


def is_decided(world: World, shelves: Shelves, name: str = "a.txt") -> str:
    world.upload(shelves.books, {name: b"Another text."})
    world.extract(shelves.books)
    world.stage(Plan(world.services), shelves.books)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Billing, "settle", dies)
        with pytest.raises(Killed):
            world.stage(Embed(world.services), shelves.books)
    return shelves.ids[name]


def is_in_dead_hands(world: World, shelves: Shelves, name: str = "a.txt") -> str:
    world.upload(shelves.books, {name: b"Another text."})
    with transaction(world.services.fltr) as tx:
        claims.claim(tx, dataset_id=shelves.books.id, stage=Stage.EXTRACT, run_id="dead", limit=9, lease_seconds=600)
        leases.expire_runs(tx, ["dead"])
    return shelves.ids[name]


def has_an_open_charge(world: World, shelves: Shelves) -> str:
    """And is in nobody's hands."""
    desk = Desk(world, shelves.payer, shelves.books)
    (claim,) = desk.claim("c.txt")
    desk.hold(claim)
    with transaction(world.services.fltr) as tx:
        expired.park(tx, [claim])
    return claim.document_id


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
    is_in_dead_hands, is_decided, is_decided_and_uploaded_anew, has_lost_a_vector, was_moved, has_no_owner,
    has_an_owner_again,
]  # fmt: skip


@pytest.mark.parametrize("list_keys", [False, True])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("scene", SCENES)
def test_a_pass_waits_for_nobody(
    world: World, shelves: Shelves, scene: Callable[[World, Shelves], str], how: str, list_keys: bool
) -> None:
    document_id = scene(world, shelves)
    dead = Desk(world, shelves.other_payer, shelves.other)
    (claim,) = dead.claim("d.txt")
    dead.hold(claim)
    dead.an_hour_passes()
    with in_use(world, document_id, how):
        sweep(world, list_keys=list_keys)
        ended = world.rows("SELECT state FROM pipeline.charges WHERE subject_id = %s", claim.document_id)
        assert ended == [("released",)]
    dead.an_hour_passes()
    world.change("UPDATE pipeline.documents SET retry_at = retry_at - interval '1 hour'")
    assert not sweep(world, list_keys=list_keys).nothing
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


@pytest.mark.parametrize("is_poor", [False, True])
def test_what_is_locked_behind_the_take_over_is_ended_by_the_pass_behind_the_sweeps_lease(
    world: World, monkeypatch: pytest.MonkeyPatch, is_poor: bool
) -> None:
    desk = Desk.of(world)
    (first,) = desk.claim()
    claim = desk.decide(first)
    charge = desk.hold(claim, Op.DOCUMENT_EMBED)
    if is_poor:
        world.services.ledger.void([hold_of(charge)], reason="expired")
        world.change_auth("UPDATE user_credits SET credits = 0")
    desk.an_hour_passes()
    with psycopg.connect(world.fltr_admin) as application:
        before(
            monkeypatch, 1, Billing, "settle", lambda: application.execute(HOW["writes"], (claim.document_id,))
        )  # fmt: skip
        assert sweep(world, list_keys=False).swept == Swept(documents=1, credits_returned=0 if is_poor else 2)
        assert world.statuses(desk.dataset) == {"a": "processing"}
        assert sweep(world, list_keys=False).nothing
    desk.an_hour_passes()
    assert sweep(world, list_keys=False).swept == Swept(documents=1, published=0 if is_poor else 1)
    assert world.statuses(desk.dataset) == {"a": "awaiting_credits" if is_poor else "ready"}


def test_a_document_in_use_keeps_no_other_of_its_owner_in_search(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "_BATCH", 1)
    has_no_owner(world, shelves)
    for document_id in shelves.ids.values():
        with in_use(world, document_id, "writes"):
            assert sweep(world, list_keys=False).withdrawn.documents_ownerless <= 1
    assert world.rows("SELECT count(*) FROM pipeline.documents WHERE live_generation IS NOT NULL") == [(0,)]


@pytest.mark.parametrize("scene", [is_in_dead_hands, is_decided, has_an_open_charge, was_moved])
def test_the_probe_sees_what_a_pass_would_end(
    world: World, shelves: Shelves, scene: Callable[[World, Shelves], str]
) -> None:
    """Else it would launch a pass each minute for as long as the application holds the row."""
    document_id = scene(world, shelves)
    Desk(world, shelves.payer, shelves.books).an_hour_passes()
    with in_use(world, document_id, "writes"):
        for _ in range(2):
            assert sweeper.probe(world.services, "").found == ""
            assert sweep(world, list_keys=False).nothing
    assert sweeper.probe(world.services, "").found
    assert not sweep(world, list_keys=False).nothing
    assert sweeper.probe(world.services, "").found == ""


def test_what_is_in_use_makes_no_batch_smaller(world: World) -> None:
    desk = Desk.of(world)
    claims_ = sorted(desk.claim(*[f"{n}.txt" for n in range(30)]), key=lambda c: c.document_id)
    desk.an_hour_passes()
    with psycopg.connect(world.fltr_admin) as application:
        application.execute(
            "SELECT FROM documents WHERE id::text = ANY(%s) FOR UPDATE", ([c.document_id for c in claims_[:9]],)
        )
        with transaction(world.services.fltr) as tx:
            taken = [t.claim.document_id for t in expired.take(tx, lease_seconds=60, age=60, limit=10)]
    assert taken == [c.document_id for c in claims_[9:19]]


def test_a_sweep_locks_what_it_ends_in_one_order(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is published and one is put back: a full pass that finds vectors of both lost waits, and neither fails."""
    first, second = sorted(shelves.ids, key=shelves.ids.__getitem__)
    live = sorted(world.keys(shelves.books))
    is_decided(world, shelves, second)
    is_in_dead_hands(world, shelves, first)
    Desk(world, shelves.payer, shelves.books).an_hour_passes()
    beside = ThreadPoolExecutor(1)

    def lose() -> int:
        with transaction(world.services.fltr) as tx:
            return manifest.lose(tx, live, world.services.fingerprint)

    lost: list[Future[int]] = []

    def and_lose() -> None:
        lost.append(beside.submit(lose))
        wait_for(lambda: lost[0].done() or world.rows(_BLOCKED) != [(0,)])

    before(monkeypatch, 1, expired, "park", and_lose)
    assert sweep(world, list_keys=False).swept.published == 1
    assert lost[0].result(_PATIENCE) > 0
    beside.shutdown()


def test_no_pass_is_launched_for_what_one_would_leave(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe and a pass ask the same question: what is in use hides nothing from the one, and launches none."""
    monkeypatch.setattr(deletion, "PAGE", 1)
    has_no_owner(world, shelves)
    with in_use(world, min(shelves.ids.values()), "writes"):
        assert sweeper.probe(world.services, "~").found == "a dataset or its owner was deleted"
        assert sweep(world, list_keys=False).withdrawn.documents_ownerless == 1
        assert sweeper.probe(world.services, "~").found == ""
        assert sweep(world, list_keys=False).nothing
    assert sweeper.probe(world.services, "~").found == "a dataset or its owner was deleted"
    assert sweep(world, list_keys=False).withdrawn.documents_ownerless == 1
    assert sweeper.probe(world.services, "~").found == ""


def test_the_probe_lets_go_of_what_it_looked_at(world: World, shelves: Shelves) -> None:
    has_no_owner(world, shelves)
    assert deletion.waiting(world.services)
    for how in HOW:
        with in_use(world, shelves.ids["a.txt"], how):
            pass
