"""The clean rebuild of `fltr`: what would be lost, and doing it so that nobody pays for what vanishes.

Belongs here: the order of things. Does not: the SQL (stores.schema), asking Dagster for its runs (the command).

A kill leaves the old database or the new one: locking writers out, the dump, the drop and what is created are one
transaction of `fltr`, so the dump has every row that is dropped. Holds are closed before its commit, and a close stands
whoever writes it first. Vectors come last and are found by listing them. So it is run again from the start.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import IsolationLevel

from fltr_pipeline.credits.holds import Close, CloseState
from fltr_pipeline.errors import ConfigurationError, DatabaseBusy, RebuildRefused, StoreUnavailable
from fltr_pipeline.pipeline.billing import hold_of
from fltr_pipeline.pipeline.reconcile import pages
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.vector_collections import everywhere
from fltr_pipeline.stores import schema
from fltr_pipeline.stores.database import transaction as pooled_transaction
from fltr_pipeline.stores.fltr import charges, datasets, manifest
from fltr_pipeline.stores.schema import dump, rights
from fltr_pipeline.stores.schema import survey as state
from fltr_pipeline.stores.schema.connection import Connection, transaction
from fltr_pipeline.stores.schema.specification import FLTR
from fltr_pipeline.stores.schema.survey import Survey
from fltr_pipeline.stores.vectors import VectorStore

REASON = "rebuild"

UnfinishedRuns = Callable[[], Sequence[str]]
"""Asks Dagster for the ids of runs that are queued or at work."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rebuild would take away, and what stands against it now."""

    survey: Survey
    holds: int
    """Open in the ledger; they are released."""
    credits_held: int
    vectors: int
    refusals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did."""

    database: str
    dump: Path
    holds: int
    credits_returned: int
    vectors: int
    rights: tuple[str, ...]
    """Statements that give other roles again what they had."""


def plan(services: Services, unfinished_runs: UnfinishedRuns) -> Plan:
    """Looks at all of it and changes nothing.

    Raises:
        StoreUnavailable: one of the databases, or Milvus, does not answer.
    """
    snapshot = transaction(_url(services), isolation=IsolationLevel.REPEATABLE_READ, read_only=True)
    with schema.explained(FLTR.name), snapshot as connection:
        found = state.survey(connection)
        no_dump = dump.obstacle(_url(services), connection)
    holds = services.ledger.open_holds(datetime.now(UTC))
    return Plan(
        survey=found,
        holds=len(holds),
        credits_held=sum(hold.amount for hold in holds),
        vectors=_stored(services, found),
        refusals=(*_unable(found.lacking, no_dump), *_refusals(services, found, unfinished_runs())),
    )


def apply(
    services: Services, folder: Path, unfinished_runs: UnfinishedRuns, *, confirmed: str, tell: Callable[[str], None]
) -> Rebuilt:
    """Rebuilds the database named `confirmed`; may be killed anywhere and run again. `tell` hears of each step done.

    Raises:
        RebuildRefused: that is not its name, work is under way, more than `fltr` would fall, or it is no `fltr`.
        DatabaseBusy: others wrote in it for too long. Nothing was dropped.
        ConfigurationError: no `pg_dump` that is new enough, or the role may not do all of it. Nothing was dropped.
        StoreUnavailable: a store does not answer; what was done stays so.
    """
    url = _url(services)
    services.vectors.rows_by_dataset()  # Milvus answers: the last step will find it
    with schema.explained(FLTR.name), _alone(url) as connection:
        found = state.survey(connection)
        if confirmed != found.database:
            raise RebuildRefused(f"the database is named {found.database!r}, not {confirmed!r}: nothing was dropped")
        if refusals := list(_refusals(services, found, unfinished_runs())):
            raise RebuildRefused(f"nothing was dropped: {'; '.join(refusals)}")
        path = dump.dump(url, folder)
        tell(f"dump: {path}")
        for statement in found.rights:  # told before they are lost, since nothing remembers them afterwards
            tell(f"to be granted again: {statement}")
        noted = _collections(services, found)
        holds, returned = _close_holds(services, found)
        tell(f"holds closed: {holds}, credits given back: {returned}")
        schema.recreate_fltr(connection, noted.items())
    tell(f"{found.database}: dropped, created anew, as specified")
    try:
        removed = sweep(services)
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{found.database} was rebuilt, only vectors of what it held are left: `fltr-pipeline reconcile` deletes "
            f"them ({error})"
        ) from error
    return Rebuilt(found.database, path, holds, returned, removed, found.rights)


def sweep(services: Services) -> int:
    """Deletes the vectors of datasets that don't exist, and reads back that they are gone; returns how many.

    Raises:
        StoreUnavailable: Milvus still shows some.
    """
    return sum(_sweep(services, store) for store in everywhere(services))


def _sweep(services: Services, store: VectorStore) -> int:
    # Milvus is read first: a dataset that is created meanwhile is then there to be found.
    stored = store.rows_by_dataset()
    with pooled_transaction(services.fltr) as tx:
        existing = {dataset.id for dataset in datasets.every(tx)}
    gone = stored.keys() - existing
    if not gone:
        return 0
    for keys in pages(key for key, dataset_id in store.every_key() if dataset_id in gone):
        store.delete_listed(keys)
    left = sum(n for dataset_id, n in store.rows_by_dataset().items() if dataset_id in gone)
    if left:
        raise StoreUnavailable(f"Milvus still shows {left} vectors of datasets that no longer exist")
    return sum(stored[dataset_id] for dataset_id in gone)


def _stored(services: Services, found: Survey) -> int:
    names = {services.vectors.collection, *_collections(services, found)}
    return sum(services.vectors.beside(name).rows_by_dataset().total() for name in names)


def _collections(services: Services, found: Survey) -> dict[str, str | None]:
    """All that were noted, name → model: of those of earlier models nothing but `fltr` knows, as of today's later."""
    if not any(t.rows for t in found.tables if (t.schema, t.name) == ("pipeline", "collections")):
        return {}  # none, or the role may not read them and is refused
    with pooled_transaction(services.fltr) as tx:
        return manifest.collections(tx)


def _url(services: Services) -> str:
    return services.settings.endpoints.database_url.get_secret_value()


def _unable(lacking: Sequence[str], no_dump: str | None) -> Iterator[str]:
    if lacking:
        yield (
            f"the role in FLTR_DATABASE_URL lacks {', '.join(lacking)}: give the URL of the owner of the database and "
            "of all in it, or an administrator's"
        )
    if no_dump:
        yield no_dump


def _refusals(services: Services, found: Survey, runs: Sequence[str]) -> Iterator[str]:
    if found.of_auth:
        yield (
            f"{found.database} has tables of fltr_auth, which is never rebuilt ({', '.join(found.of_auth)}): "
            "if they are there by mistake, drop them first"
        )
    if found.outside:
        yield (
            f"this is not in public or pipeline and would fall with them ({', '.join(found.outside)}): drop it first, "
            "or make it independent of them (ALTER EXTENSION ... SET SCHEMA, ALTER PUBLICATION ... DROP)"
        )
    if runs:
        named = ", ".join(runs)
        yield f"Dagster has runs that are queued or at work ({named}): stop the sensors, then wait or end them"
    for run_id, n in found.leases:
        yield f"{run_id or 'a sweep'} works on {n} documents: its leases run out within FLTR_LEASE_SECONDS of its end"
    if unreadable := services.ledger.unreadable_holds(datetime.now(UTC)):
        yield (
            f"rows of the ledger look like open holds, but were changed and can't be closed ({', '.join(unreadable)}): "
            "`fltr-pipeline credits audit` says what is wrong with them; restore them first"
        )


@contextmanager
def _alone(url: str) -> Iterator[Connection]:
    """A transaction beside which nobody writes."""
    try:
        with transaction(url) as connection:
            if connection.execute(schema.TRY_LOCK).fetchone() != (True,):
                raise DatabaseBusy(
                    "another rebuild or `db init` is at work on this database: nothing was dropped, wait for its end"
                )
            if unable := list(_unable(rights.lacking(connection, state.SCHEMAS), dump.obstacle(url, connection))):
                raise ConfigurationError(f"nothing was dropped: {'; '.join(unable)}")
            state.keep_writers_out(connection)
            yield connection
    except StoreUnavailable as error:
        if isinstance(error.__cause__, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
            with transaction(url, read_only=True) as other:
                others = ", ".join(state.sessions(other)) or "they have ended meanwhile"
            raise DatabaseBusy(
                f"other sessions hold on to tables of fltr, nothing was dropped: end their transactions ({others}), "
                "then run it again"
            ) from error
        raise


def _close_holds(services: Services, found: Survey) -> tuple[int, int]:
    """Nothing stays held for documents that vanish; what was settled stays so. Returns holds and credits returned."""
    ledger = services.ledger
    held = len(ledger.open_holds(datetime.now(UTC)))
    open_ones, refunding = [], []
    if found.has("pipeline", "charges"):
        with pooled_transaction(services.fltr) as tx:
            open_ones = charges.open_charges(tx)
            refunding = charges.refunding_charges(tx)
    # Their holds may be on their way: voided, they can't land any more.
    closed = ledger.void([hold_of(c) for c in (*open_ones, *refunding) if c.amount > 0], reason=REASON)
    refunded = ledger.refund([hold_of(c) for c in refunding if c.amount > 0], reason=REASON)
    stray = ledger.open_holds(datetime.now(UTC))
    closed |= ledger.close([Close(hold, 0, CloseState.RELEASED, REASON) for hold in stray])
    if left := ledger.open_holds(datetime.now(UTC)):
        raise RebuildRefused(f"{len(left)} holds in fltr_auth could not be closed: nothing was dropped")
    return held, refunded + sum(c.returned for c in closed.values())
