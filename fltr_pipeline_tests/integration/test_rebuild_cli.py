"""`fltr-pipeline db rebuild`: what it shows, what it asks, when it ends with which code."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from fltr_pipeline.embedded.dagster import home_folder, open_instance
from fltr_pipeline.stores.schema.verify import verify_fltr
from fltr_pipeline_tests.command_line import Outcome, fltr_pipeline
from fltr_pipeline_tests.rebuilding import HELD, script
from fltr_pipeline_tests.rebuilding import scene as set_scene
from fltr_pipeline_tests.world import World


@pytest.fixture
def dagster_url(new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> str:
    url = new_database().replace("postgresql://", "postgresql+psycopg2://", 1)
    monkeypatch.setenv("FLTR_DAGSTER_DATABASE_URL", url)
    return url


@pytest.fixture
def name(world: World, dagster_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with rogue tables and its name."""
    monkeypatch.setenv("FLTR_HOME", str(tmp_path / "home"))
    script(world, "CREATE TABLE users (id text); INSERT INTO users VALUES ('a'), ('b')")
    with psycopg.connect(world.fltr_admin) as connection:
        return connection.info.dbname


def typing(words: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Outcome:
    """The command on a terminal at which somebody types these words."""
    terminal = io.StringIO(words + "\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    return fltr_pipeline("db", "rebuild", *arguments)


def test_plan_shows_tables_rows_holds_and_vectors(world: World, name: str) -> None:
    set_scene_without_rogues(world)
    script(world, "GRANT SELECT (id) ON documents TO fltr_pipeline")
    shown = fltr_pipeline("db", "rebuild", "--plan")
    assert shown.exit_code == 0, shown.output
    assert "not in the specification" in next(line for line in shown.stdout.splitlines() if "public.users" in line)
    assert f"2 open holds in fltr_auth, of {HELD} credits: given back" in shown.words
    assert "vector" in shown.words
    assert "to be granted again: GRANT SELECT (id) ON TABLE public.documents TO fltr_pipeline" in shown.words
    document = fltr_pipeline("db", "rebuild", "--plan", "--json").document
    tables = {f"{t['schema']}.{t['name']}": (t["rows"], t["specified"]) for t in document["survey"]["tables"]}
    assert tables["public.users"] == (2, False)
    assert tables["public.documents"] == (2, True)
    assert (document["holds"], document["credits_held"], document["refusals"]) == (2, HELD, [])
    assert document["survey"]["database"] == name


def test_what_others_would_lose_is_shown_and_stands_against_it(world: World, name: str) -> None:
    script(world, "CREATE SCHEMA reports; CREATE VIEW reports.recent AS SELECT id FROM documents")
    planned = fltr_pipeline("db", "rebuild", "--plan")
    refused = fltr_pipeline("db", "rebuild", "--apply", "--confirm", name)
    assert planned.exit_code == refused.exit_code == 1
    for words in (planned.words, " ".join(refused.stderr.split())):
        assert "would fall with them (view reports.recent): drop it first" in words
    assert world.rows("SELECT count(*) FROM users") == [(2,)]


def set_scene_without_rogues(world: World) -> None:
    script(world, "ALTER TABLE users RENAME TO aside")
    set_scene(world)
    script(world, "DROP TABLE users; ALTER TABLE aside RENAME TO users")


def test_apply_with_the_name_passed(world: World, name: str, tmp_path: Path) -> None:
    done = fltr_pipeline("db", "rebuild", "--apply", "--confirm", name, "--dumps", tmp_path / "here", "--json")
    dump = Path(done.document["dump"])
    assert dump.parent == tmp_path / "here"
    assert dump.stat().st_size > 0
    assert str(dump) in done.stderr, "told at once"
    assert verify_fltr(world.fltr_admin).conforms
    again = fltr_pipeline("db", "rebuild", "--apply", "--confirm", name)
    assert again.exit_code == 0, again.output
    assert str(tmp_path / "home" / "dumps") in again.stdout


def test_apply_asks_for_the_name_and_shows_what_goes(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mistyped = typing("fltr", monkeypatch, "--apply")
    assert mistyped.exit_code == 1
    assert "public.users" in mistyped.stdout
    assert "nothing was dropped" in mistyped.stderr
    assert world.rows("SELECT count(*) FROM users") == [(2,)]
    typed = typing(name, monkeypatch, "--apply")
    assert typed.exit_code == 0, typed.output
    assert verify_fltr(world.fltr_admin).conforms


@pytest.mark.parametrize("status", [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING])
def test_a_run_of_dagster_stands_against_it(
    world: World, name: str, dagster_url: str, tmp_path: Path, status: DagsterRunStatus
) -> None:
    home_folder(tmp_path).mkdir(exist_ok=True)
    with open_instance(tmp_path, dagster_url) as instance:
        run = run_with(instance, status)
        run_with(instance, DagsterRunStatus.FAILURE)
        planned = fltr_pipeline("db", "rebuild", "--plan", "--json")
        refused = fltr_pipeline("db", "rebuild", "--apply", "--confirm", name)
    assert planned.exit_code == refused.exit_code == 1
    assert [run.run_id in words for words in json.loads(planned.stdout)["refusals"]] == [True]
    assert run.run_id in refused.stderr
    assert "nothing was dropped" in refused.stderr
    assert world.rows("SELECT count(*) FROM users") == [(2,)]


def run_with(instance: DagsterInstance, status: DagsterRunStatus) -> DagsterRun:
    return instance.add_run(DagsterRun(job_name="ingest", status=status))


def test_a_dagster_that_does_not_answer_stands_against_it_too(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql+psycopg2://me:hunter2@127.0.0.1:1/dagster"
    monkeypatch.setenv("FLTR_DAGSTER_DATABASE_URL", url)
    refused = fltr_pipeline("db", "rebuild", "--apply", "--confirm", name)
    assert refused.exit_code == 1
    assert "Dagster" in refused.stderr
    assert "hunter2" not in refused.output
    assert world.rows("SELECT count(*) FROM users") == [(2,)]


@pytest.mark.parametrize("password", ["me@hunter2", "me@x:hunter2"])
def test_a_misspelt_url_of_dagster_is_told_without_its_password(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, password: str
) -> None:
    monkeypatch.setenv("FLTR_DAGSTER_DATABASE_URL", f"postgresql+psycopg2://me:{password}@127.0.0.1:1/dagster")
    refused = fltr_pipeline("db", "rebuild", "--plan")
    assert refused.exit_code == 1
    assert "a database URL must" in refused.words
    assert "hunter2" not in refused.output + caplog.text


@pytest.mark.parametrize("arguments", [[], ["--plan", "--apply"], ["--apply"], ["--apply", "--json"]])
def test_wrong_usage_exits_2_and_does_nothing(world: World, name: str, arguments: list[str]) -> None:
    assert fltr_pipeline("db", "rebuild", *arguments).exit_code == 2
    assert world.rows("SELECT count(*) FROM users") == [(2,)]
