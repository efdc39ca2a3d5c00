"""The ledger on a PostgreSQL that crashes, cuts connections or has none to give.

After each fault the caller asks again with the same holds, as a worker does; then every balance is exact.
"""

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import scalar_row
from sqlalchemy import create_engine

from fltr_pipeline.credits.holds import Closed, CloseState, Hold, HoldState, Payer
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.stores.schema import AUTH_ROLE, init_auth_copy
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline_tests.faults.own_server import OwnServer
from fltr_pipeline_tests.faults.own_server import own_server as own_server_in
from fltr_pipeline_tests.faults.storm import prepare, run, until_answered
from fltr_pipeline_tests.faults.storm_checks import check
from fltr_pipeline_tests.moments import wait_for
from fltr_pipeline_tests.money import available, hold, lines, release, settle
from fltr_pipeline_tests.seed import SEED
from fltr_pipeline_tests.world import World

LONG = os.environ.get("FLTR_FAULTS") == "long"
CALLS, RESTARTS = (50_000, 20) if LONG else (1_000, 3)


@pytest.fixture
def own_server(short_tmp: Path) -> Iterator[OwnServer]:
    with own_server_in(short_tmp) as server:
        yield server


def written(admin_url: str) -> int:
    """Rows of the ledger so far: how far a storm is; -1: the server does not say."""
    try:
        with psycopg.connect(admin_url) as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            return int(cursor.execute("SELECT count(transaction_metadata) FROM credit_transactions").fetchall()[0])
    except psycopg.OperationalError:
        return -1


@pytest.mark.timeout(3_600 if LONG else 300)
def test_a_server_that_crashes_in_the_storm_loses_no_credit(own_server: OwnServer) -> None:
    print(f"FLTR_SEED={SEED}")
    init_auth_copy(own_server.uri)
    storm = prepare(own_server.uri, as_role(own_server.uri, AUTH_ROLE), SEED, CALLS)
    crashed = []

    def crash(running: Callable[[], bool]) -> None:
        for n in range(1, RESTARTS + 1):
            while running() and written(storm.admin_url) < n * CALLS // (2 * RESTARTS):
                time.sleep(0.05)
            crashed.append(running())
            own_server.crash()

    told, beside = run(storm, crash)
    assert crashed == [True] * RESTARTS
    check(storm, told, beside, undisturbed=False)


@pytest.mark.timeout(3_600 if LONG else 300)
def test_connections_that_are_cut_in_the_storm_lose_no_credit(new_database: Callable[[], str]) -> None:
    print(f"FLTR_SEED={SEED}")
    admin_url, rng = new_database(), random.Random(f"{SEED} cuts")
    init_auth_copy(admin_url)
    storm = prepare(admin_url, as_role(admin_url, AUTH_ROLE), SEED, CALLS)
    cut = 0

    def cut_some(running: Callable[[], bool]) -> None:
        nonlocal cut
        with psycopg.connect(admin_url, autocommit=True) as connection:
            while running():
                time.sleep(rng.uniform(0, 0.2))
                cut += connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND usename = %s AND state <> 'idle' ORDER BY random() LIMIT %s", (AUTH_ROLE, rng.randint(1, 3))
                ).rowcount  # fmt: skip

    told, beside = run(storm, cut_some)
    assert cut > 10
    check(storm, told, beside, undisturbed=False)


@dataclass(frozen=True)
class Operation:
    """A call on a hold of 4 by one who had 100; what must be there before, what it may answer, what is left then."""

    before: Callable[[Ledger, Hold], object]
    call: Callable[[Ledger, Hold], object]
    answers: Sequence[object]
    balance: int


def nothing(ledger: Ledger, h: Hold) -> None:
    pass


def reserve(ledger: Ledger, h: Hold) -> HoldState:
    return ledger.reserve([h])[h.id]


def reserve_and_settle(ledger: Ledger, h: Hold) -> None:
    ledger.reserve([h])
    ledger.close([settle(h, 3)])


def end_of(closed: Mapping[str, Closed]) -> tuple[CloseState, int]:
    (one,) = closed.values()
    return one.state, one.charged


RELEASED = CloseState.RELEASED, 0
OPERATIONS = {
    "reserve": Operation(nothing, reserve, [HoldState.OPEN], 96),
    "settle": Operation(reserve, lambda a, h: end_of(a.close([settle(h, 3)])), [(CloseState.SETTLED, 3)], 97),
    "release": Operation(reserve, lambda a, h: end_of(a.close([release(h)])), [RELEASED], 100),
    "void what landed": Operation(reserve, lambda a, h: end_of(a.void([h], reason="expired")), [RELEASED], 100),
    "void what did not land": Operation(nothing, lambda a, h: end_of(a.void([h], reason="expired")), [RELEASED], 100),
    # What went back is told once: not by a try that finds it done.
    "refund": Operation(reserve_and_settle, lambda a, h: a.refund([h], reason="gave_up"), [3, 0], 100),
    "grant": Operation(nothing, lambda a, h: a.grant(h.payer, 5, reason="sorry"), [105], 105),
}


def cut_commits(world: World, patch: pytest.MonkeyPatch, *, landed: bool, times: int) -> None:
    """End the ledger's own backend before its COMMIT reaches it, or after: then only the answer is lost."""
    dialect, left = world.services.ledger.engine.dialect, times
    commit = dialect.do_commit

    def cut(connection: Any) -> None:
        nonlocal left
        if left == 0:
            commit(connection)
            return
        left -= 1
        if landed:
            commit(connection)
        pid = connection.driver_connection.info.backend_pid
        assert world.auth_rows("SELECT pg_terminate_backend(%s, 5000)", pid) == [(True,)]
        if landed:
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        commit(connection)

    patch.setattr(dialect, "do_commit", cut)


def exact(world: World, payer: Payer) -> bool:
    """The balance is what its user's rows add up to."""
    total = "SELECT sum(amount) FROM credit_transactions WHERE user_id = %s"
    return bool(world.auth_rows(total, payer.user_id) == [(available(world, payer),)])


@pytest.mark.parametrize("landed", [False, True], ids=["before COMMIT", "after COMMIT"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_connection_cut_at_commit_costs_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, landed: bool
) -> None:
    ledger, payer, operation = world.services.ledger, world.user(credits=100), OPERATIONS[name]
    h = hold(payer, 4)
    operation.before(ledger, h)
    with monkeypatch.context() as patch:
        cut_commits(world, patch, landed=landed, times=1)
        assert operation.call(ledger, h) in operation.answers
    assert available(world, payer) == operation.balance
    assert exact(world, payer)
    if name != "grant":
        assert operation.call(ledger, h) in operation.answers
        assert available(world, payer) == operation.balance


@pytest.mark.parametrize("landed", [False, True], ids=["before COMMIT", "after COMMIT"])
@pytest.mark.parametrize("name", ["reserve", "settle", "refund"])
def test_a_caller_whose_commits_are_all_cut_asks_again(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, landed: bool
) -> None:
    ledger, payer, operation = world.services.ledger, world.user(credits=100), OPERATIONS[name]
    h = hold(payer, 4)
    operation.before(ledger, h)
    with monkeypatch.context() as patch:
        cut_commits(world, patch, landed=landed, times=1_000)
        with pytest.raises(StoreUnavailable):
            operation.call(ledger, h)
    assert operation.call(ledger, h) in operation.answers
    assert available(world, payer) == operation.balance
    assert exact(world, payer)


def test_a_pool_without_a_connection_to_give_leaves_nothing_half_done(world: World) -> None:
    engine = create_engine(world.services.ledger.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    ledger, rich, poor = Ledger(engine), world.user(credits=100), world.user(credits=3)
    batch = [hold(rich, 5), hold(poor, 4), hold(rich, 6)]
    with engine.connect():
        with pytest.raises(StoreUnavailable):
            ledger.reserve(batch)
        with pytest.raises(StoreUnavailable):
            ledger.close([release(batch[0])])
        assert lines(world, "reserve") == []
    states = ledger.reserve(batch)
    assert [states[h.id] for h in batch] == [HoldState.OPEN, HoldState.INSUFFICIENT, HoldState.OPEN]
    assert (available(world, rich), available(world, poor)) == (89, 3)
    engine.dispose()


def test_workers_that_fight_for_one_connection_are_told_the_truth(world: World) -> None:
    engine = create_engine(world.services.ledger.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.001)
    ledger, payer = Ledger(engine), world.user(credits=1_000)
    holds = [hold(payer, 2) for _ in range(200)]

    def ask(h: Hold) -> HoldState | None:
        try:
            return reserve(ledger, h)
        except StoreUnavailable:
            return None

    with ThreadPoolExecutor(16) as threads:
        told = dict(zip((h.id for h in holds), threads.map(ask, holds), strict=True))
    assert set(told.values()) <= {HoldState.OPEN, None}
    assert {row.id for row in lines(world, "reserve")} == {i for i, state in told.items() if state}
    assert available(world, payer) == 1_000 - 2 * len(lines(world, "reserve"))
    engine.dispose()


def blocked_backends(world: World) -> int:
    """Backends of the ledger's role that wait for a lock."""
    ((n,),) = world.auth_rows(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND usename = %s AND wait_event_type = 'Lock'",
        AUTH_ROLE,
    )
    return int(n)


def test_a_deadlock_is_tried_again_and_no_lack_of_credits(world: World) -> None:
    """As a deletion in another order would make it; ours is the victim: the other waits longer before it looks."""
    ledger, payer = world.services.ledger, world.user(credits=100)
    h = hold(payer, 4)
    with ThreadPoolExecutor(1) as thread, psycopg.connect(world.auth_admin) as other:
        other.execute("SET LOCAL deadlock_timeout = '1min'")
        other.execute("SELECT FROM user_credits WHERE user_id = %s FOR UPDATE", (payer.user_id,))
        told = thread.submit(reserve, ledger, h)
        wait_for(lambda: blocked_backends(world) == 1)
        other.execute("SELECT FROM users WHERE id = %s FOR UPDATE", (payer.user_id,))
        other.rollback()
        assert told.result() is HoldState.OPEN
    # The statistics are written at the end of a transaction, but at most once a second.
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    wait_for(lambda: world.auth_rows(deadlocks) == [(1,)])
    assert available(world, payer) == 96


def test_serialization_failures_are_tried_again_and_no_lack_of_credits(world: World) -> None:
    """Where the database's default is stricter than READ COMMITTED, workers on one pot fail each other all the time."""
    ((name,),) = world.auth_rows("SELECT current_database()")
    world.change_auth(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    ledger, payer = world.services.ledger, world.user(credits=1_000)
    batches = [[hold(payer, 2) for _ in range(3)] for _ in range(40)]
    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(lambda batch: until_answered(lambda: ledger.reserve(batch)), batches))
    assert {state for states in told for state in states.values()} == {HoldState.OPEN}
    assert available(world, payer) == 1_000 - 2 * 3 * 40
    assert exact(world, payer)
