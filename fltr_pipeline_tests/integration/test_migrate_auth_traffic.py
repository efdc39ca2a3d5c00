"""`fltr_auth`'s migration while the application is at work: who waits for whom, who gives up, what becomes of money."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fltr_pipeline.errors import DatabaseBusy, MigrationRefused, StoreUnavailable
from fltr_pipeline.stores.schema import migration
from fltr_pipeline.stores.schema.connection import transaction
from fltr_pipeline.stores.schema.migration import Outcome, Patience, State, change, session
from fltr_pipeline.stores.schema.migration.plan import look
from fltr_pipeline.stores.schema.migration.session import looking
from fltr_pipeline_tests import old_auth

NewDatabase = Callable[[], str]

ONCE = Patience(attempts=1, pause_seconds=0)
OFTEN = Patience(attempts=40, pause_seconds=0.05)
SEED = 20261122

HOLDS_USERS = """
SELECT count(*) FROM pg_locks
WHERE relation = 'users'::regclass AND mode = 'AccessExclusiveLock' AND granted AND pid <> pg_backend_pid()
"""


def silent(_: str) -> None: ...


def apply(url: str, dumps: Path, patience: Patience = OFTEN) -> Outcome:
    return migration.apply(url, dumps, null_orphan_teams=True, patience=patience, tell=silent)


def rollback(url: str, dumps: Path, patience: Patience = OFTEN) -> Outcome:
    return migration.rollback(url, dumps, patience=patience, tell=silent)


@contextmanager
def idle_in_transaction(url: str, statement: str) -> Iterator[int]:
    """Another session that has changed something and doesn't end its transaction; yields its pid."""
    with psycopg.connect(url, application_name="shop") as connection:
        connection.execute(statement.encode())
        yield connection.info.backend_pid
        connection.rollback()


@pytest.fixture
def old(old_auth_copy: NewDatabase) -> str:
    return old_auth_copy()


# --- locks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("migrated", [False, True], ids=["fresh", "done"])
def test_a_plan_holds_up_neither_purchase_nor_sign_up(old: str, tmp_path: Path, migrated: bool) -> None:
    if migrated:
        apply(old, tmp_path)
    table, key = ("user_credits", "user_id") if migrated else ("users", "id")
    with looking(old) as connection:
        look(connection)
        modes = "SELECT DISTINCT mode FROM pg_locks WHERE pid = %s AND locktype <> 'virtualxid'"
        with psycopg.connect(old, options="-c lock_timeout=1s") as application:
            assert application.execute(modes, (connection.info.backend_pid,)).fetchall() == [("AccessShareLock",)]
            application.execute(f"UPDATE {table} SET credits = 7 WHERE {key} = 'user-000'".encode())
            application.execute("INSERT INTO users (id, name, email) VALUES ('new', 'N', 'n@example.org')")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("UPDATE users SET name = 'x'")


def test_sessions_in_the_way_are_reported(old: str) -> None:
    with idle_in_transaction(old, "UPDATE users SET name = name WHERE id = 'user-000'") as pid:
        (session,) = migration.plan(old).sessions
    assert (session.pid, session.application, session.state) == (pid, "shop", "idle in transaction")
    assert "users RowExclusiveLock" in session.locks


@pytest.mark.parametrize("table", ["users", "teams", "user_credits", "__drizzle_migrations"])
@pytest.mark.parametrize("work", [apply, rollback])
def test_a_run_that_another_session_blocks_gives_up_and_names_it(
    old: str, tmp_path: Path, work: Callable[[str, Path, Patience], Outcome], table: str
) -> None:
    if work is rollback:
        apply(old, tmp_path)
    else:
        old_auth.execute(old, old_auth.DOCUMENT[0], *old_auth.DOCUMENT[5:])
    before = old_auth.fingerprint(old)
    with (
        idle_in_transaction(old, f"DELETE FROM {table} WHERE false") as pid,
        pytest.raises(DatabaseBusy, match=rf"session {pid} \(postgres, shop, idle in transaction"),
    ):
        work(old, tmp_path, ONCE)
    assert old_auth.fingerprint(old) == before
    assert work(old, tmp_path, ONCE).done


def test_a_plan_gives_up_too_when_a_table_is_locked_for_long(old: str) -> None:
    with (
        idle_in_transaction(old, "LOCK TABLE users IN ACCESS EXCLUSIVE MODE") as pid,
        pytest.raises(DatabaseBusy, match=f"session {pid}"),
    ):
        migration.plan(old)


def test_a_run_that_comes_to_need_a_further_table_says_that_it_is_locked(old: str) -> None:
    with (
        idle_in_transaction(old, "LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE"),
        session.only_run(old) as connection,
        pytest.raises(DatabaseBusy, match=r"further table .*lock timeout.*pg_locks"),
        session.exclusive(connection, ONCE, silent),
    ):
        connection.execute("LOCK TABLE sessions")


def test_a_run_tries_again_and_says_for_whom_it_waits(old: str, tmp_path: Path) -> None:
    said: list[str] = []
    blocker = psycopg.connect(old, application_name="shop")
    blocker.execute("UPDATE teams SET credits = credits")

    def tell(line: str) -> None:
        said.append(line)
        if "shop" in line:
            blocker.close()

    assert migration.apply(old, tmp_path, null_orphan_teams=True, patience=OFTEN, tell=tell).state is State.DONE
    assert [line.split(":")[0] for line in said] == ["dump", "in use, next attempt in 0.05 s"]


def test_of_two_who_wait_for_each_other_it_is_never_the_application_that_loses(old: str, tmp_path: Path) -> None:
    """The application has a team and wants a user; the migration has the users and wants the teams."""
    with ThreadPoolExecutor(1) as pool, psycopg.connect(old) as application, psycopg.connect(old) as observer:
        observer.autocommit = True
        application.execute("UPDATE teams SET credits = credits - 1 WHERE id = 'team-0'")
        running = pool.submit(apply, old, tmp_path)
        while observer.execute(HOLDS_USERS).fetchone() == (0,):
            assert not running.done()
        application.execute("UPDATE users SET credits = 1234 WHERE id = 'user-000'")
        application.commit()
        assert running.result().state is State.DONE
    assert old_auth.accounts(old)["user-000"][0] == 1234


def test_of_two_runs_at_once_the_second_gives_up(old: str, tmp_path: Path) -> None:
    def second(_: str) -> None:
        with pytest.raises(DatabaseBusy, match="another migrate-auth"):
            rollback(old, tmp_path)
        said.append("refused")

    said: list[str] = []
    assert migration.apply(old, tmp_path, null_orphan_teams=True, tell=second).state is State.DONE
    assert said == ["refused"]
    assert old_auth.accounts(old) == old_auth.expected()
    assert rollback(old, tmp_path).state is State.FRESH


def test_a_connection_that_is_cut_at_the_end_leaves_it_in_doubt_and_says_how_to_find_out(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    must_be = change._must_be

    def then_cut(connection: Any, state: State) -> Any:
        after = must_be(connection, state)
        old_auth.rows(old, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        return after

    before = old_auth.fingerprint(old)
    with monkeypatch.context() as patch:
        patch.setattr(change, "_must_be", then_cut)
        with pytest.raises(StoreUnavailable, match=r"all of it happened or nothing.*--plan"):
            apply(old, tmp_path)
    assert old_auth.fingerprint(old) == before
    assert apply(old, tmp_path).done


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("SELECT pg_cancel_backend(pg_backend_pid())", "everything was taken back: canceling statement"),
        ("DO 'BEGIN RAISE EXCEPTION USING ERRCODE = ''disk_full'', MESSAGE = ''no space''; END'", "back: no space"),
    ],
)
def test_a_statement_that_fails_on_a_connection_that_lives_leaves_nothing_in_doubt(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, said: str
) -> None:
    def must_be(connection: Any, _: State) -> Any:
        connection.execute(statement)

    before = old_auth.fingerprint(old)
    monkeypatch.setattr(change, "_must_be", must_be)
    with pytest.raises(MigrationRefused, match=said):
        apply(old, tmp_path)
    assert old_auth.fingerprint(old) == before


def test_a_run_that_stands_still_gives_the_tables_free(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    must_be = change._must_be

    def then_nothing(connection: Any, state: State) -> Any:
        must_be(connection, state)
        before = old_auth.rows(old, "SELECT count(*) FROM users")  # waits until the server has ended that transaction
        assert before == [(old_auth.USERS,)]
        return must_be(connection, state)

    with monkeypatch.context() as patch:
        patch.setattr(change, "_must_be", then_nothing)
        patch.setattr(session, "IDLE_MS", 200)
        with pytest.raises(StoreUnavailable, match="idle-in-transaction timeout"):
            apply(old, tmp_path)
    assert migration.plan(old).state is State.FRESH


# --- traffic ----------------------------------------------------------------------------------------------------------


class Application:
    """One of the web application's workers, of the old version or the new as the schema wants it: it buys and signs up.

    What it was promised (a COMMIT that returned) is counted. The only error that it may see is that the schema is the
    other version's.
    """

    def __init__(self, url: str, number: int, stop: threading.Event) -> None:
        self.bought = 0
        self.signed_up: list[str] = []
        self._url, self._number, self._stop = url, number, stop
        self._random = random.Random(SEED + number)
        self._sequence = itertools.count()

    def work(self) -> "Application":
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stop.is_set():
                action = self._random.choice([self._buy, self._buy_for_team, self._sign_up])
                try:
                    with connection.transaction():
                        action(connection, old=True)
                except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable):
                    try:
                        with connection.transaction():
                            action(connection, old=False)
                    except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable):
                        continue  # rolled back in between
        return self

    def _buy(self, connection: psycopg.Connection[Any], *, old: bool) -> None:
        target = (
            "users SET credits = coalesce(credits, 0) + 1 WHERE id"
            if old
            else ("user_credits SET credits = credits + 1 WHERE user_id")
        )
        user = f"user-{self._random.randrange(4, 500, 8):03}"
        found = connection.execute(f"UPDATE {target} = %s".encode(), (user,))
        self.bought += found.rowcount

    def _buy_for_team(self, connection: psycopg.Connection[Any], *, old: bool) -> None:
        connection.execute("UPDATE teams SET credits = credits + 1 WHERE id = 'team-1'")
        self._buy(connection, old=old)

    def _sign_up(self, connection: psycopg.Connection[Any], *, old: bool) -> None:
        name = f"new-{self._number}-{next(self._sequence)}"
        row = (name, name, f"{name}@example.org")
        if old:
            connection.execute("INSERT INTO users (id, name, email, credits) VALUES (%s, %s, %s, 10)", row)
        else:
            connection.execute("INSERT INTO users (id, name, email) VALUES (%s, %s, %s)", row)
            connection.execute("INSERT INTO user_credits (user_id, credits) VALUES (%s, 10)", (name,))
        self.signed_up.append(name)


def test_no_purchase_and_no_sign_up_is_lost_while_it_runs_there_and_back(old: str, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    before = sum(credits for credits, _, _ in old_auth.expected().values())
    stop = threading.Event()
    workers = [Application(old, number, stop) for number in range(3)]
    with ThreadPoolExecutor(len(workers)) as pool:
        running = [pool.submit(worker.work) for worker in workers]
        try:
            for work in (apply, rollback, apply):
                seen = sum(worker.bought for worker in workers)
                while sum(worker.bought for worker in workers) < seen + 10 and not any(r.done() for r in running):
                    time.sleep(0.01)
                assert work(old, tmp_path, OFTEN).done
        finally:
            stop.set()
        for result in running:
            result.result()
    accounts = old_auth.accounts(old)
    signed_up = [name for worker in workers for name in worker.signed_up]
    assert len(accounts) == old_auth.USERS + len(signed_up)
    assert {accounts[name] for name in signed_up} == {(10, 0, None)}
    bought = sum(worker.bought for worker in workers)
    assert bought >= 30
    assert sum(credits for credits, _, _ in accounts.values()) == before + bought + 10 * len(signed_up)


def test_the_next_run_need_not_wait_until_the_server_notices_the_end(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = []

    @contextmanager
    def not_yet_closed(url: str) -> Iterator[psycopg.Connection]:
        with transaction(url) as connection:
            yield connection
            with psycopg.connect(old) as next_run:
                free.append(next_run.execute(session._ADVISORY.encode()).fetchone())

    monkeypatch.setattr(session, "transaction", not_yet_closed)
    with session.only_run(old):
        pass
    assert free == [(True,)]
