"""Doing it and taking it back: each in one transaction that has the tables for itself, after a dump.

Belongs here: the order of things, the checks that decide between COMMIT and ROLLBACK. Does not: statements (`shape`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fltr_pipeline.errors import MigrationRefused
from fltr_pipeline.stores.schema.connection import Connection
from fltr_pipeline.stores.schema.dump import dump
from fltr_pipeline.stores.schema.migration.balances import Balances, Orphan, Totals, open_holds
from fltr_pipeline.stores.schema.migration.plan import Plan, look, plan
from fltr_pipeline.stores.schema.migration.session import Patience, Tell, exclusive, looking, only_run
from fltr_pipeline.stores.schema.migration.shape import USER_CREDITS, State, Step, rollback_steps

PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did. `dump` is None when there was nothing to do."""

    place: str
    state: State
    """Of the database now."""
    dump: Path | None = None
    done: tuple[str, ...] = ()
    """The steps, in words."""
    totals: Totals | None = None
    """What was carried over, as counted where it is now."""
    nulled: tuple[Orphan, ...] = ()
    """Users whose team did not exist: they have none now."""


def apply(
    url: str, dumps: Path, *, null_orphan_teams: bool = False, patience: Patience = PATIENCE, tell: Tell
) -> Outcome:
    """Migrates the database, or does nothing at all; nothing to do is no error. `tell` hears where the dump is.

    Raises:
        MigrationRefused: its state or rows forbid it, a check failed, or PostgreSQL refused a statement.
        DatabaseBusy: other sessions held on to the tables.
        ConfigurationError: a URL, a right, the folder or a program is missing.
        StoreUnavailable: the server does not answer or went away.
    """
    with only_run(url) as connection:
        before = plan(url)
        if before.state is State.DONE:
            return Outcome(before.place, before.state)
        before.require(null_orphan_teams=null_orphan_teams)
        saved = _dump(url, dumps, before, tell)
        with exclusive(connection, patience, tell):
            now = look(connection)
            now.require(null_orphan_teams=null_orphan_teams)
            _run(connection, now.shape.steps)
            after = _must_be(connection, State.DONE)
    steps = tuple(step.words for step in now.shape.steps)
    orphans = now.balances.orphans if now.balances else ()
    return Outcome(now.place, State.DONE, saved, steps, after.accounts, orphans)


def rollback(url: str, dumps: Path, *, patience: Patience = PATIENCE, tell: Tell) -> Outcome:
    """Gives `users` its three columns back, with the current balances, and drops `user_credits`; or does nothing.

    The journal stays: without its rows Drizzle would run its own version of the migration, which copies nothing.

    Raises:
        MigrationRefused: the database is neither migrated nor fresh, credits are held, a check failed, or PostgreSQL
            refused a statement.
        DatabaseBusy: other sessions held on to the tables.
        ConfigurationError: a URL, a right, the folder or a program is missing.
        StoreUnavailable: the server does not answer or went away.
    """
    with only_run(url) as connection:
        with looking(url) as looked:
            before = look(looked)
            if before.state is State.FRESH:
                return Outcome(before.place, before.state)
            _require_reversible(looked, before)
        saved = _dump(url, dumps, before, tell)
        with exclusive(connection, patience, tell):
            now = look(connection)
            _require_reversible(connection, now)
            steps = rollback_steps(now.layout)
            _run(connection, steps)
            after = _must_be(connection, State.FRESH)
    return Outcome(now.place, State.FRESH, saved, tuple(step.words for step in steps), after.users)


def _dump(url: str, dumps: Path, found: Plan, tell: Tell) -> Path:
    left_out = found.layout.rights.closed
    path = dump(url, dumps, without=left_out)
    tell(f"dump: {path}" + (f", without {', '.join(left_out)}" if left_out else ""))
    return path


def _run(connection: Connection, steps: tuple[Step, ...]) -> None:
    for step in steps:
        if step.drops:
            _check(look(connection).balances)
        connection.execute(step.statement.encode())


def _check(copied: Balances | None) -> None:
    """Both tables are there: each row of one must be a row of the other, and they must add up to the same."""
    if copied is None or copied.accounts is None or not copied.users.equal(copied.accounts):
        raise MigrationRefused(f"the copy does not add up ({copied}): everything was taken back")
    if copied.differing or copied.without_account:
        raise MigrationRefused(
            f"after the copy {len(copied.differing)} rows differed and {len(copied.without_account)} users had none: "
            "everything was taken back"
        )


def _must_be(connection: Connection, state: State) -> Balances:
    after = look(connection)
    if after.state is not state or after.balances is None:
        said = "; ".join((*after.shape.obstacles, *(step.words for step in after.shape.steps)))
        raise MigrationRefused(f"the result was {after.state}, not {state} ({said}): everything was taken back")
    return after.balances


def _require_reversible(connection: Connection, found: Plan) -> None:
    if reasons := tuple(_reasons_against_rollback(connection, found)):
        raise MigrationRefused(f"fltr_auth can't be rolled back, nothing was changed: {'; '.join(reasons)}")


def _reasons_against_rollback(connection: Connection, found: Plan) -> Iterator[str]:
    if found.layout.present or found.state is State.UNKNOWN:
        reasons = "; ".join(found.shape.obstacles) or f"users still has {', '.join(found.layout.present)}"
        yield f"only a migrated one can be, and {reasons}"
        return
    yield from found.layout.rights.obstacles()
    known = {column.name for column in USER_CREDITS.columns}
    if more := sorted(found.layout.types(USER_CREDITS.name).keys() - known):
        yield (
            f"user_credits has columns of the application's own ({', '.join(more)}), which would be dropped with their "
            "values: move them elsewhere first"
        )
    holds, credits = open_holds(connection, found.layout)
    if holds:
        yield (
            f"{credits:,} credits are in {holds:,} open holds, and could neither be charged nor given back afterwards: "
            "stop the pipeline's runs, and when their leases are over, `fltr-pipeline reconcile`"
        )
