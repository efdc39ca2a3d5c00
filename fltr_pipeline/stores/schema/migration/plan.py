"""The report on a database's migration, without changing anything.

Belongs here: what `shape` and `balances` know, put together; whether a run may go on. Does not: running (`change`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fltr_pipeline.errors import MigrationRefused
from fltr_pipeline.stores.schema.connection import Connection
from fltr_pipeline.stores.schema.dump import obstacle
from fltr_pipeline.stores.schema.migration import balances, layout
from fltr_pipeline.stores.schema.migration.balances import Balances, Difference
from fltr_pipeline.stores.schema.migration.layout import COLUMNS, Layout
from fltr_pipeline.stores.schema.migration.session import Session, looking, sessions
from fltr_pipeline.stores.schema.migration.shape import Shape, State, judge

_SHOWN = 20
"""Rows that a refusal names; the plan has them all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found, and what `apply` would do."""

    place: str
    """Database, server and role, without the password."""
    layout: Layout
    shape: Shape
    balances: Balances | None
    """None in the state `unknown`."""
    sessions: tuple[Session, ...]
    """Those that would be in the way now."""
    no_dump: str | None = None
    """Why none can be made here, where that was asked."""

    @property
    def state(self) -> State:
        """How far the migration is."""
        return self.shape.state

    def refusals(self, *, null_orphan_teams: bool) -> tuple[str, ...]:
        """Why `apply` would change nothing; empty where it would go on, or has nothing to do."""
        if self.state is State.DONE:
            return ()
        found = self.balances
        rows = _rows(found, self.layout, null_orphan_teams) if found else ()
        return (*self.shape.obstacles, *rows, *([self.no_dump] if self.no_dump else []))

    def require(self, *, null_orphan_teams: bool) -> None:
        """Does nothing when `apply` may go on.

        Raises:
            MigrationRefused: naming all that forbids it.
        """
        if refusals := self.refusals(null_orphan_teams=null_orphan_teams):
            raise MigrationRefused(
                f"fltr_auth can't be migrated (state: {self.state}), nothing was changed: {'; '.join(refusals)}. "
                "`fltr-pipeline db migrate-auth --plan` shows it all"
            )


def plan(url: str) -> Plan:
    """Looks at the database in one read-only snapshot.

    Raises:
        DatabaseBusy: somebody has one of the tables for themselves.
        ConfigurationError: not a PostgreSQL URL, or its role may not read the tables.
        StoreUnavailable: the server does not answer.
    """
    with looking(url) as connection:
        return replace(look(connection), no_dump=obstacle(url, connection))


def look(connection: Connection) -> Plan:
    """The same in a transaction that is open."""
    info = connection.info
    found = layout.read(connection)
    shape = judge(found)
    return Plan(
        place=f"{info.dbname} at {info.host}:{info.port} as {info.user}",
        layout=found,
        shape=shape,
        balances=None if shape.state is State.UNKNOWN else balances.read(connection, found),
        sessions=sessions(connection),
    )


def _rows(found: Balances, layout: Layout, null_orphan_teams: bool) -> Iterator[str]:
    if found.overflows:
        yield f"beyond int4: {_listed(found.overflows)}"
    if found.orphans and not null_orphan_teams:
        listed = _listed([f"{orphan.user_id} in team {orphan.team_id!r}" for orphan in found.orphans])
        yield f"users in teams that don't exist: {listed}; mend them, or let them have no team (--null-orphan-teams)"
    if found.differing:
        yield f"user_credits says something else than users: {_listed(list(map(_difference, found.differing)))}"
    if found.without_account and layout.present != COLUMNS:
        yield (
            f"users without a row in user_credits, and their balances are no longer in users: "
            f"{_listed(found.without_account)}; restore these rows first"
        )


def _difference(row: Difference) -> str:
    if not row.known:
        return f"{row.user_id} (no such user)"
    pairs = {
        "credits": (row.credits_in_users, row.credits_in_user_credits),
        "purchased": (row.purchased_in_users, row.purchased_in_user_credits),
        "team": (row.team_in_users, row.team_in_user_credits),
    }
    return f"{row.user_id} ({', '.join(f'{name} {a} and {b}' for name, (a, b) in pairs.items() if a != b)})"


def _listed(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
    return f"{len(rows):,} ({', '.join(rows[:_SHOWN])}{more})"
