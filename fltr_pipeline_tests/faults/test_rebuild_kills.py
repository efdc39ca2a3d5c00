"""A rebuild that is killed anywhere can be run again and ends right."""

import multiprocessing
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest

from fltr_pipeline.models import VectorRow
from fltr_pipeline.pipeline import rebuild
from fltr_pipeline.pipeline.audit import audit_ledger
from fltr_pipeline.stores.schema import catalog, survey, versions
from fltr_pipeline.stores.schema import connection as schema_connection
from fltr_pipeline.stores.schema.verify import verify_fltr
from fltr_pipeline_tests.rebuilding import (
    CHARGED,
    GRANTED,
    HELD,
    Scene,
    client_program,
    no_runs,
    quiet,
    rebuild_and_die,
    scene,
)
from fltr_pipeline_tests.world import World

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fltr_pipeline_tests.rebuilding"])
LEFT = {"pipeline.schema_version": versions.newest(), "pipeline.collections": 1}
"""Rows in what was rebuilt."""


def counts(world: World) -> dict[str, int]:
    with schema_connection.transaction(world.fltr_admin) as connection:
        return {f"{t.schema}.{t.name}": t.rows for t in survey.survey(connection).tables if t.rows is not None}


def filled(rows: dict[str, int]) -> dict[str, int]:
    """Tables that are not empty."""
    return {name: n for name, n in rows.items() if n}


def auth_schema(world: World) -> catalog.Catalog:
    with schema_connection.transaction(world.auth_admin) as connection:
        return catalog.read(connection)


@contextmanager
def copy_of(world: World, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Both databases as they are now, and the environment that names them."""
    urls = []
    with psycopg.connect(server, autocommit=True) as connection:
        for url in (world.fltr_admin, world.auth_admin):
            name, template = f"t_{uuid.uuid4().hex[:12]}", psycopg.conninfo.conninfo_to_dict(url)["dbname"]
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
            urls.append(server.replace("/postgres?", f"/{name}?", 1))
    copy = World(fltr_admin=urls[0], auth_admin=urls[1], milvus_uri=world.milvus_uri, blobs=world.blobs)
    with monkeypatch.context() as patch:
        for name, value in copy.environment.items():
            patch.setenv(name, value)
        yield copy
    copy.close()
    with psycopg.connect(server, autocommit=True) as connection:
        for url in urls:
            name = str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def with_vector(world: World, made: Scene) -> None:
    row = VectorRow(uuid.uuid4().hex, made.dataset.id, "d", "text", [1.0] + [0.0] * 383)
    world.services.vectors.insert([row])


def test_a_rebuild_killed_at_any_step_left_the_old_or_the_new_and_ends_right(
    world: World, postgres_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scene(world)
    before, auth = counts(world), auth_schema(world)
    world.close()
    seen = set()
    for step in count():
        with copy_of(world, postgres_server, monkeypatch) as copy:
            with_vector(copy, made)
            folder = tmp_path / str(step)
            name = str(psycopg.conninfo.conninfo_to_dict(copy.fltr_admin)["dbname"])
            arguments = (copy.environment, str(folder), name, step)
            process = PROCESSES.Process(target=rebuild_and_die, args=arguments)
            process.start()
            process.join()
            assert process.exitcode in {0, -signal.SIGKILL}, step

            now = counts(copy)
            old = now == before
            assert old or (verify_fltr(copy.fltr_admin).conforms and filled(now) == LEFT), step
            check_money(copy, made, done=False)
            seen.add("done" if process.exitcode == 0 else "old" if old else "new")

            rebuild.apply(copy.services, folder, no_runs, confirmed=name, tell=quiet)
            assert verify_fltr(copy.fltr_admin).conforms
            assert filled(counts(copy)) == LEFT
            assert made.dataset.id not in copy.services.vectors.rows_by_dataset()
            assert auth_schema(copy) == auth
            check_money(copy, made, done=True)
            assert any("TABLE DATA public users" in contents(path) for path in folder.glob("*.dump")), step
            assert list(folder.glob("*.unfinished")) == []
        if process.exitcode == 0:
            break
    assert seen == {"old", "new", "done"}
    assert step > 20, "steps at which it was killed"


def check_money(world: World, made: Scene, *, done: bool) -> None:
    statement = world.statement(made.payer)
    assert (statement.charged, statement.available + statement.held) == (CHARGED, GRANTED - CHARGED)
    assert statement.held in ({0} if done else {0, 1, 3, HELD})
    assert audit_ledger(world.services.fltr, world.services.ledger).errors == 0


def contents(path: Path) -> str:
    """The table of contents of a dump, which only a whole one has."""
    program = client_program("pg_restore")
    return subprocess.run([program, "--list", str(path)], capture_output=True, text=True, check=True).stdout
