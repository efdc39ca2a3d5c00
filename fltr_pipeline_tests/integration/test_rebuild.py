"""The clean rebuild of `fltr`: what it tells before, what it does, when it won't."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fltr_pipeline.errors import ConfigurationError, DatabaseBusy, RebuildRefused, SchemaDrift
from fltr_pipeline.models import Stage, VectorRow
from fltr_pipeline.pipeline import rebuild
from fltr_pipeline.pipeline.audit import audit_ledger
from fltr_pipeline.stores import schema
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, leases
from fltr_pipeline.stores.schema import catalog, dump, init_auth_copy, survey, versions
from fltr_pipeline.stores.schema import connection as schema_connection
from fltr_pipeline.stores.schema.catalog import Catalog
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.verify import verify_auth, verify_fltr
from fltr_pipeline_tests.rebuilding import (
    CHARGED,
    GRANTED,
    HELD,
    Scene,
    client_program,
    database,
    no_runs,
    quiet,
    scene,
    script,
)
from fltr_pipeline_tests.world import World

NewDatabase = Callable[[], str]


def counts(world: World) -> dict[str, int]:
    with schema_connection.transaction(world.fltr_admin) as connection:
        return {f"{t.schema}.{t.name}": t.rows for t in survey.survey(connection).tables if t.rows is not None}


def auth_schema(world: World) -> Catalog:
    with schema_connection.transaction(world.auth_admin) as connection:
        return catalog.read(connection)


def apply(world: World, folder: Path, **more: object) -> rebuild.Rebuilt:
    arguments = {"confirmed": database(world), "tell": quiet, **more}
    return rebuild.apply(world.services, folder, no_runs, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def set_scene(world: World) -> Scene:
    return scene(world)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "PATIENCE", survey.PATIENCE.replace("10s", "300ms"))


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_lists_what_would_be_lost_and_changes_nothing(world: World, set_scene: Scene) -> None:
    with psycopg.connect(world.fltr_admin) as connection:
        connection.execute("CREATE ROLE rebuilds_reader")
        connection.execute("GRANT SELECT ON documents TO rebuilds_reader")
        connection.execute("GRANT SELECT ON users TO rebuilds_reader")
    before, ledger = counts(world), world.auth_rows("SELECT count(*) FROM credit_transactions")
    found = rebuild.plan(world.services, no_runs)
    rows = {f"{t.schema}.{t.name}": (t.rows, t.specified) for t in found.survey.tables}
    assert rows["public.users"] == (2, False)
    assert rows['public.Odd "name" %s'] == (0, False)
    assert rows["public.documents"] == (2, True)
    assert rows["pipeline.chunks"] == (1, True)
    assert {'view "recent uploads"', "type mood", "function noop(integer)"} <= set(found.survey.others)
    assert found.survey.database == database(world)
    assert found.survey.rights == ("GRANT SELECT ON TABLE public.documents TO rebuilds_reader",)
    assert (found.survey.outside, found.survey.lacking) == ((), ())
    assert (found.holds, found.credits_held) == (2, HELD)
    assert found.vectors >= 1
    assert found.refusals == ()
    assert counts(world) == before
    assert world.auth_rows("SELECT count(*) FROM credit_transactions") == ledger
    script(world, "DROP OWNED BY rebuilds_reader; DROP ROLE rebuilds_reader")


# --- doing it ---------------------------------------------------------------------------------------------------------


def test_a_rebuild_leaves_what_is_specified_and_nobody_pays_for_what_vanished(
    world: World, set_scene: Scene, tmp_path: Path
) -> None:
    auth, users = auth_schema(world), world.auth_rows("SELECT * FROM users")
    told: list[str] = []
    assert world.services.vectors.rows_by_dataset()[set_scene.dataset.id] == 1
    done = apply(world, tmp_path / "dumps", tell=told.append)

    assert verify_fltr(world.fltr_admin).findings == tuple(
        f for f in verify_fltr(world.fltr_admin).findings if f.severity == "ok"
    )
    left = {"pipeline.schema_version": versions.newest(), "pipeline.collections": 1}
    assert {name: n for name, n in counts(world).items() if n} == left
    assert (done.holds, done.credits_returned) == (2, HELD)
    assert done.vectors >= 1
    assert set_scene.dataset.id not in world.services.vectors.rows_by_dataset()

    statement = world.statement(set_scene.payer)
    assert (statement.charged, statement.held, statement.available) == (CHARGED, 0, GRANTED - CHARGED)
    assert audit_ledger(world.services.fltr, world.services.ledger).errors == 0
    assert (auth_schema(world), world.auth_rows("SELECT * FROM users")) == (auth, users)
    assert told[0] == f"dump: {done.dump}"


def test_the_dump_has_every_row_and_can_be_restored(
    world: World, set_scene: Scene, tmp_path: Path, new_database: NewDatabase
) -> None:
    before = counts(world)
    done = apply(world, tmp_path)
    restored = new_database()
    program = client_program("pg_restore")
    result = subprocess.run(
        [program, "--no-owner", "--exit-on-error", "--clean", "--if-exists", "--dbname", restored, str(done.dump)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    with schema_connection.transaction(restored) as connection:
        assert {f"{t.schema}.{t.name}": t.rows for t in survey.survey(connection).tables} == before
        assert connection.execute("SELECT email FROM public.users WHERE id = 'u-2'").fetchall() == [
            ("grzegorz.brzęczyszczykiewicz@example.org",)
        ]


def test_the_work_goes_on_afterwards(world: World, set_scene: Scene, tmp_path: Path) -> None:
    apply(world, tmp_path)
    dataset = world.dataset(set_scene.payer, "anew")
    world.upload(dataset, {"a.txt": b"Alpha and omega."})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert world.statement(set_scene.payer).charged == 2 * CHARGED


def test_a_database_that_never_had_our_schema_is_rebuilt(world: World, tmp_path: Path) -> None:
    """What production has: a table `users`, and nothing that belongs there."""
    script(world, "DROP SCHEMA pipeline CASCADE; DROP TABLE processing_jobs, documents, datasets")
    script(world, "CREATE TABLE users (id text PRIMARY KEY, credits integer); INSERT INTO users VALUES ('u', 7)")
    found = rebuild.plan(world.services, no_runs)
    assert [(t.name, t.rows) for t in found.survey.tables] == [("users", 1)]
    apply(world, tmp_path)
    assert verify_fltr(world.fltr_admin).conforms
    script(world, "DROP SCHEMA public CASCADE; DROP SCHEMA pipeline CASCADE")
    apply(world, tmp_path)
    assert verify_fltr(world.fltr_admin).conforms
    assert len(list(tmp_path.glob("*.dump"))) == 2


def test_others_may_use_the_new_schema_public(world: World, tmp_path: Path) -> None:
    apply(world, tmp_path)
    assert world.rows("SELECT has_schema_privilege('fltr_pipeline', 'public', 'USAGE')") == [(True,)]


# --- when it won't ----------------------------------------------------------------------------------------------------


def test_it_wants_to_hear_the_right_name(world: World, set_scene: Scene, tmp_path: Path) -> None:
    before = counts(world)
    with pytest.raises(RebuildRefused, match="not 'fltr': nothing was dropped"):
        apply(world, tmp_path, confirmed="fltr")
    assert counts(world) == before
    assert list(tmp_path.glob("*.dump")) == []


def test_it_refuses_while_dagster_has_runs(world: World, set_scene: Scene, tmp_path: Path) -> None:
    before = counts(world)
    with pytest.raises(RebuildRefused, match="run-1"):
        rebuild.apply(world.services, tmp_path, lambda: ["run-1"], confirmed=database(world), tell=quiet)
    assert "run-1" in rebuild.plan(world.services, lambda: ["run-1"]).refusals[0]
    assert counts(world) == before
    assert world.statement(set_scene.payer).held == HELD


def test_it_refuses_while_a_worker_holds_a_lease_and_not_after_it_ran_out(
    world: World, set_scene: Scene, tmp_path: Path
) -> None:
    world.upload(set_scene.dataset, {"c.txt": b"Gamma."})
    with transaction(world.services.fltr) as tx:
        claims.claim(
            tx, dataset_id=set_scene.dataset.id, stage=Stage.EXTRACT, run_id="at work", limit=9, lease_seconds=600
        )
    assert "at work" in rebuild.plan(world.services, no_runs).refusals[0]
    with pytest.raises(RebuildRefused, match="at work works on"):
        apply(world, tmp_path)
    with transaction(world.services.fltr) as tx:
        leases.expire_runs(tx, ["at work"])
    apply(world, tmp_path)


def test_it_never_rebuilds_fltr_auth(
    world: World, tmp_path: Path, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = new_database()
    init_auth_copy(people)
    monkeypatch.setenv("FLTR_DATABASE_URL", people)
    with psycopg.connect(people) as connection:
        name = connection.info.dbname
    with pytest.raises(RebuildRefused, match="tables of fltr_auth, which is never rebuilt"):
        rebuild.apply(world.services, tmp_path, no_runs, confirmed=name, tell=quiet)
    assert verify_auth(people).conforms


def test_it_gives_up_cleanly_when_somebody_writes(
    world: World, set_scene: Scene, tmp_path: Path, impatient: None
) -> None:
    before = counts(world)
    with psycopg.connect(world.fltr_admin, application_name="the application") as other:
        other.execute("UPDATE documents SET filename = 'x' || filename")
        with pytest.raises(DatabaseBusy, match="the application"):
            apply(world, tmp_path)
        other.rollback()
    assert counts(world) == before
    assert world.statement(set_scene.payer).held == HELD
    apply(world, tmp_path)


def test_a_second_one_at_once_gives_up(world: World, set_scene: Scene, tmp_path: Path) -> None:
    before = counts(world)
    with psycopg.connect(world.fltr_admin) as other:
        other.execute(schema.LOCK.encode())
        with pytest.raises(DatabaseBusy, match="another rebuild"):
            apply(world, tmp_path)
    assert counts(world) == before


def test_nothing_is_written_between_the_dump_and_the_drop(
    world: World, set_scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    dumped = dump.dump

    def and_somebody_uploads(url: str, folder: Path) -> Path:
        path = dumped(url, folder)
        with psycopg.connect(world.fltr_admin) as other:
            other.execute("SET lock_timeout = '200ms'")
            for statement in ("DELETE FROM users", "UPDATE pipeline.charges SET state = 'open'"):
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    other.execute(statement.encode())
                other.rollback()
                refused.append(statement)
                other.execute("SET lock_timeout = '200ms'")
            assert other.execute("SELECT count(*) FROM documents").fetchall() == [(2,)], "readers are let in"
        return path

    monkeypatch.setattr(dump, "dump", and_somebody_uploads)
    apply(world, tmp_path)
    assert len(refused) == 2


def test_without_a_dump_nothing_is_done(
    world: World, set_scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = counts(world)
    monkeypatch.setattr(dump, "_programs", lambda: iter(()))
    with pytest.raises(ConfigurationError, match="pg_dump"):
        apply(world, tmp_path)
    assert counts(world) == before
    assert world.statement(set_scene.payer).held == HELD


def test_what_is_not_as_specified_is_not_kept(
    world: World, set_scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = counts(world)
    monkeypatch.setattr(schema, "create_fltr", lambda connection: connection.execute("CREATE TABLE users (id text)"))
    with pytest.raises(SchemaDrift):
        apply(world, tmp_path)
    assert counts(world) == before


def test_the_owner_of_the_database_needs_no_more_rights(
    world: World, tmp_path: Path, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = new_database()
    with psycopg.connect(mine) as connection:
        name = connection.info.dbname
        connection.execute("CREATE ROLE rebuilds_owner LOGIN")
        connection.execute(f'ALTER DATABASE "{name}" OWNER TO rebuilds_owner'.encode())
    url = as_role(mine, "rebuilds_owner")
    monkeypatch.setenv("FLTR_DATABASE_URL", url)
    schema.init_fltr(url)
    for _ in range(2):
        rebuild.apply(world.services, tmp_path, no_runs, confirmed=name, tell=quiet)
        assert verify_fltr(url).conforms
    with psycopg.connect(mine) as connection:
        connection.execute("ALTER TABLE documents OWNER TO postgres")
    with pytest.raises(ConfigurationError, match="administrator"):
        rebuild.apply(world.services, tmp_path, no_runs, confirmed=name, tell=quiet)
    with psycopg.connect(mine, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" OWNER TO postgres'.encode())
        connection.execute("DROP OWNED BY rebuilds_owner CASCADE; DROP ROLE rebuilds_owner")


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_of_datasets_that_exist_stay(world: World, set_scene: Scene) -> None:
    kept = world.dataset(set_scene.payer, "kept")
    world.upload(kept, {"a.txt": b"Alpha and omega."})
    world.process(kept)
    world.change("DELETE FROM datasets WHERE id = %s", set_scene.dataset.id)
    assert rebuild.sweep(world.services) >= 1
    assert dict(world.services.vectors.rows_by_dataset()) == {kept.id: 1}
    assert rebuild.sweep(world.services) == 0


def test_vectors_of_datasets_that_another_program_named_as_it_liked_go(
    world: World, set_scene: Scene, milvus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fltr_pipeline.pipeline.reconcile.KEYS_PER_PAGE", 2)
    vectors = world.services.vectors
    rows = [{"key": f"doc/{n}", "dataset_id": 'a/b "c"', "document_id": "x", "text": "text"} for n in range(5)]
    milvus.insert(vectors.collection, [r | {"vector": [1.0] + [0.0] * 383} for r in rows])
    assert rebuild.sweep(world.services) >= 5
    assert vectors.rows_by_dataset().keys() == {set_scene.dataset.id}


def test_vectors_of_an_earlier_model_go_too_also_after_a_kill_behind_the_commit(
    world: World, set_scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = world.services.vectors
    earlier = vectors.beside("fltr_chunks_earlier")
    earlier.ensure()
    earlier.insert([VectorRow("k", set_scene.dataset.id, "d", "text", [1.0] + [0.0] * 383)])
    world.change("INSERT INTO pipeline.collections (name) VALUES ('fltr_chunks_earlier')")
    stored = vectors.rows_by_dataset().total() + 1
    assert rebuild.plan(world.services, no_runs).vectors == stored
    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "sweep", lambda _: 0)
        apply(world, tmp_path / "dumps")
    assert earlier.holds(set_scene.dataset.id)
    assert set(world.rows("SELECT name, model FROM pipeline.collections")) == {
        ("fltr_chunks_earlier", None), (vectors.collection, world.services.model.name)
    }  # fmt: skip
    assert rebuild.sweep(world.services) == stored
    assert not earlier.holds()
    earlier.drop()


def test_where_no_collection_was_made_there_are_no_vectors(world: World) -> None:
    assert replace(world.services.vectors, collection="never_made").rows_by_dataset() == {}
