"""`fltr-pipeline db` against a real server: what it prints and with which exit code."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fltr_pipeline.settings import STACK_FILE
from fltr_pipeline.stores.schema import AUTH_ROLE
from fltr_pipeline.stores.schema.connection import as_role, transaction
from fltr_pipeline_tests.command_line import fltr_pipeline

NewDatabase = Callable[[], str]


def endpoints(fltr: str, auth: str) -> dict[str, str]:
    return {
        "database_url": fltr,
        "auth_database_url": auth,
        "dagster_database_url": "postgresql+psycopg2://unused",
        "milvus_uri": "http://unused",
        "blob_url": "unused",
    }


@pytest.fixture
def embedded(new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The administrator's URLs of an embedded stack's two databases, both empty."""
    fltr, auth = new_database(), new_database()
    stack = {"endpoints": endpoints(fltr, as_role(auth, AUTH_ROLE))}
    (tmp_path / STACK_FILE).write_text(json.dumps(stack))
    monkeypatch.setenv("FLTR_HOME", str(tmp_path))
    return fltr, auth


@pytest.fixture
def production(new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The same, configured by the environment."""
    fltr, auth = new_database(), new_database()
    for name, value in endpoints(fltr, auth).items():
        monkeypatch.setenv(f"FLTR_{name.upper()}", value)
    return fltr, auth


def tables(url: str) -> int:
    with transaction(url) as connection:
        return len(connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public'").fetchall())


def test_init_makes_both_databases_of_the_embedded_stack(embedded: tuple[str, str]) -> None:
    for _ in range(2):
        result = fltr_pipeline("db", "init")
        assert result.exit_code == 0, result.output
    assert [tables(url) for url in embedded] == [3, 10]


def test_init_tells_programs_what_it_made(embedded: tuple[str, str]) -> None:
    assert fltr_pipeline("db", "init", "--json").document == [
        {"database": "fltr", "state": "as specified"},
        {"database": "fltr_auth", "state": "a development copy, as specified"},
    ]


def test_verify_shows_a_table_and_exits_0_when_all_is_well(embedded: tuple[str, str]) -> None:
    fltr_pipeline("db", "init")
    result = fltr_pipeline("db", "verify")
    assert result.exit_code == 0
    assert "fltr: as specified, 0 harmless differences" in result.output
    assert "fltr_auth: as specified, 0 harmless differences" in result.output
    assert "✗" not in result.output


def test_verify_exits_1_on_drift_and_names_it(embedded: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # a terminal wide enough for each row to be a line
    fltr_pipeline("db", "init")
    with transaction(embedded[0]) as connection:
        connection.execute("CREATE TABLE users (id text)")
    result = fltr_pipeline("db", "verify", "--json")
    assert result.exit_code == 1
    fltr, auth = json.loads(result.output)
    assert (fltr["database"], fltr["conforms"], auth["conforms"]) == ("fltr", False, True)
    assert {f["subject"] for f in fltr["findings"] if f["severity"] == "harmful"} == {
        "users",
        "query 1: tables of fltr",
    }
    assert fltr_pipeline("db", "verify", "--database", "fltr_auth").exit_code == 0
    shown = fltr_pipeline("db", "verify", "--database", "fltr")
    assert shown.exit_code == 1
    row = next(line for line in shown.output.splitlines() if "✗ │ users " in line)
    for words in ("✗", "no such table in fltr", "a table", "DROP TABLE public.users CASCADE"):
        assert words in row, "a row has all of what was expected, found, and how to mend it"


def test_init_tells_of_a_rogue_table_that_it_leaves_in_place(embedded: tuple[str, str]) -> None:
    with transaction(embedded[0]) as connection:
        connection.execute("CREATE TABLE users (id text)")
    result = fltr_pipeline("db", "init")
    assert result.exit_code == 1
    assert "users: expected no such table" in result.stderr
    assert tables(embedded[0]) == 4


def test_init_in_production_leaves_fltr_auth_alone_unless_asked(production: tuple[str, str]) -> None:
    assert fltr_pipeline("db", "init").exit_code == 0
    assert [tables(url) for url in production] == [3, 0]
    assert fltr_pipeline("db", "init", "--dev-auth").exit_code == 0
    assert [tables(url) for url in production] == [3, 10]


def test_a_user_is_added_to_the_embedded_stack_once(embedded: tuple[str, str]) -> None:
    fltr_pipeline("db", "init")
    first = fltr_pipeline("db", "add-user", "ada@example.org", "--credits", "50", "--json")
    assert first.exit_code == 0, first.output
    again = fltr_pipeline("db", "add-user", "ada@example.org", "--credits", "70")
    assert again.output.strip() == json.loads(first.output)["id"]
    with transaction(embedded[1]) as connection:
        assert connection.execute("SELECT name, credits FROM users JOIN user_credits ON user_id = id").fetchall() == [
            ("ada", 50)
        ]


def test_users_of_a_configured_fltr_auth_are_not_ours_to_add(production: tuple[str, str]) -> None:
    result = fltr_pipeline("db", "add-user", "ada@example.org")
    assert result.exit_code == 1
    assert "web application" in result.stderr


@pytest.mark.parametrize("arguments", [["nobody"], ["ada@example.org", "--credits", "-1"]])
def test_wrong_usage_exits_2(embedded: tuple[str, str], arguments: list[str]) -> None:
    assert fltr_pipeline("db", "add-user", *arguments).exit_code == 2


def test_without_a_stack_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTR_HOME", str(tmp_path))
    result = fltr_pipeline("db", "verify")
    assert result.exit_code == 1
    assert "fltr-pipeline up" in result.stderr


def test_half_a_configuration_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTR_DATABASE_URL", "postgresql://u:secret@h/d")
    result = fltr_pipeline("db", "verify")
    assert result.exit_code == 1
    assert "FLTR_AUTH_DATABASE_URL" in result.stderr
    assert "secret" not in result.output
