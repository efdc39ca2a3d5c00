"""`fltr-pipeline db migrate-auth`: what it prints, where its rights come from, with which exit code it ends."""

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from fltr_pipeline.settings import STACK_FILE
from fltr_pipeline.stores.schema import AUTH_ROLE
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline_tests import old_auth
from fltr_pipeline_tests.command_line import Outcome, fltr_pipeline

NewDatabase = Callable[[], str]


@pytest.fixture
def old(old_auth_copy: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The `fltr_auth` of an embedded stack, in the state `fresh`."""
    url = old_auth_copy()
    endpoints = {
        "database_url": "postgresql://unused",
        "auth_database_url": as_role(url, AUTH_ROLE),
        "dagster_database_url": "postgresql+psycopg2://unused",
        "milvus_uri": "http://unused",
        "blob_url": "unused",
    }
    (tmp_path / STACK_FILE).write_text(json.dumps({"endpoints": endpoints}))
    monkeypatch.setenv("FLTR_HOME", str(tmp_path))
    return url


@pytest.fixture
def production(old: str, templates: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, configured by the environment, with the least-privilege role."""
    assert templates  # whose making created the role
    for name in ("database", "dagster_database"):
        monkeypatch.setenv(f"FLTR_{name}_URL".upper(), "postgresql+psycopg2://unused")
    monkeypatch.setenv("FLTR_AUTH_DATABASE_URL", as_role(old, AUTH_ROLE))
    monkeypatch.setenv("FLTR_MILVUS_URI", "http://unused")
    monkeypatch.setenv("FLTR_BLOB_URL", "unused")
    return old


def migrate(*arguments: str) -> Outcome:
    return fltr_pipeline("db", "migrate-auth", *arguments)


def test_there_and_back_on_the_embedded_stack(old: str, tmp_path: Path) -> None:
    refused = migrate("--plan")
    assert refused.exit_code == 1
    assert "state: fresh" in refused.stdout
    assert "✗ users in teams that don't exist: 80" in refused.words
    assert migrate("--plan", "--null-orphan-teams").exit_code == 0

    applied = migrate("--apply", "--null-orphan-teams")
    assert applied.exit_code == 0, applied.output
    assert "500 users: 2,153,699,024 credits" in applied.stdout
    assert "in no team now, for theirs did not exist: 80 users" in applied.stdout
    dump = Path(applied.stderr.strip().removeprefix("dump: "))
    assert dump.parent == tmp_path / "dumps"
    assert dump.stat().st_size > 0

    assert "state: done, nothing to do" in migrate("--apply").stdout
    done = migrate("--plan")
    assert done.exit_code == 0
    assert "nothing to do" in done.stdout
    back = migrate("--rollback", "--dumps", str(tmp_path / "elsewhere"))
    assert back.exit_code == 0, back.output
    assert "state: fresh" in back.stdout
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    assert len(old_auth.rows(old, "SELECT credits FROM users")) == old_auth.USERS


def test_the_plan_as_json_has_everything(old: str) -> None:
    old_auth.execute(
        old,
        "CREATE VIEW rich AS SELECT id FROM users WHERE credits > 100",
        "CREATE SCHEMA drizzle",
        "CREATE TABLE drizzle.__drizzle_migrations (hash text, created_at bigint)",
    )
    with psycopg.connect(old, application_name="shop") as shop:
        shop.execute("UPDATE users SET name = name WHERE id = 'user-000'")
        result = migrate("--plan", "--null-orphan-teams", "--json")
    assert result.exit_code == 1
    plan = json.loads(result.stdout)
    assert plan["state"] == "fresh"
    assert plan["balances"]["users"] == {"rows": 500, "credits": 2153699024, "purchased": 113365340095}
    assert {orphan["team_id"] for orphan in plan["balances"]["orphans"]} == set(old_auth.ORPHANED.values())
    assert [(d["column"], d["blocks"]) for d in plan["dependents"]] == [("credits", True)]
    assert plan["journals"] == [{"schema": "drizzle", "rows": []}]
    assert [session["application"] for session in plan["sessions"]] == ["shop"]
    assert any("DROP COLUMN credits" in step["statement"] for step in plan["steps"])
    assert "view rich" in plan["refusals"][0]


def test_the_outcome_as_json(old: str) -> None:
    done = migrate("--apply", "--null-orphan-teams", "--json").document
    assert (done["state"], done["totals"]["rows"], len(done["nulled"])) == ("done", 500, 80)
    assert Path(done["dump"]).is_file()
    again = migrate("--apply", "--json").document
    assert (again["state"], again["done"], again["dump"]) == ("done", [], None)


def test_users_without_an_account_are_told_even_when_all_is_done(old: str) -> None:
    """What is left after the document's SQL met a NULL: schema and journal perfect, and no balance."""
    old_auth.run_document(old)
    lost = migrate("--plan")
    assert lost.exit_code == 1
    assert "without a row in user_credits: 500 users" in lost.stdout


def test_in_production_the_owners_url_comes_from_a_variable_and_nowhere_else(
    production: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = migrate("--plan")
    assert missing.exit_code == 1
    assert "FLTR_AUTH_ADMIN_URL is not set" in missing.words
    monkeypatch.setenv("FLTR_AUTH_ADMIN_URL", production)
    assert migrate("--plan", "--null-orphan-teams").exit_code == 0
    monkeypatch.setenv("OWNER_URL", as_role(production, AUTH_ROLE))
    denied = migrate("--plan", "--admin-url-from", "OWNER_URL")
    assert denied.exit_code == 1
    assert "permission denied" in denied.words


@pytest.mark.parametrize(
    "url", ["postgresql://u:secret@localhost:1/d", "mysql://u:secret@h/d", "postgresql://u:sec ret"]
)
def test_no_message_repeats_the_password(old: str, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert old
    monkeypatch.setenv("FLTR_AUTH_ADMIN_URL", url)
    result = migrate("--apply")
    assert result.exit_code == 1
    assert "sec" not in result.output.replace("second", "")


@pytest.mark.parametrize(
    "arguments", [[], ["--plan", "--apply"], ["--apply", "--rollback"], ["--rollback", "--null-orphan-teams"]]
)
def test_wrong_usage_exits_2(old: str, arguments: list[str]) -> None:
    assert old
    assert migrate(*arguments).exit_code == 2


def test_a_plan_says_that_no_dump_can_be_made(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fltr_pipeline.stores.schema.dump._programs", lambda: iter(()))
    for how in ("--plan", "--apply"):
        refused = migrate(how, "--null-orphan-teams")
        assert refused.exit_code == 1
        assert "needs a pg_dump as new (there is none on PATH)" in refused.words
    assert "state: fresh" in migrate("--plan").stdout
