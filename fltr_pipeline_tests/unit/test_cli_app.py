"""The command line as a whole: it is quick to help, and its errors are one line or JSON."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fltr_pipeline import cli
from fltr_pipeline.cli import output
from fltr_pipeline.errors import NotFound

HEAVY = {"dagster", "torch", "pymilvus", "sqlalchemy", "psycopg", "pydantic", "pypdf", "sentence_transformers"}


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = "import sys; from fltr_pipeline.cli import main; sys.argv[0] = 'fltr-pipeline'; main()"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from fltr_pipeline.cli import main\n"
        "sys.argv = ['fltr-pipeline', '--help']\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f" {name} " in result.stdout for name in cli.COMMANDS)
    assert not HEAVY & set(result.stderr.split())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_its_own_help(name: str) -> None:
    result = CliRunner().invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0, result.output


def test_wrong_usage_is_2_and_json_for_programs() -> None:
    plain, as_json = run("no-such"), run("no-such", "--json")
    assert (plain.returncode, as_json.returncode) == (2, 2)
    assert "No such command" in plain.stderr
    assert json.loads(as_json.stderr) == {"error": {"type": "UsageError", "message": "No such command 'no-such'."}}


@pytest.mark.parametrize(
    ("as_json", "said"),
    [(False, "no dataset [x]\n"), (True, '{"error": {"type": "NotFound", "message": "no dataset [x]"}}\n')],
)
def test_an_error_of_ours_is_told_without_a_traceback(
    as_json: bool, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_, output.errors_told(as_json=as_json):
        raise NotFound("no dataset [x]")
    assert exit_.value.code == 1
    assert capsys.readouterr().err == said


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), output.errors_told(as_json=False):
        _ = 1 / 0


def test_wrong_settings_are_told_without_their_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLTR_DATABASE_URL", "postgresql://me:hunter2@host/x")
    monkeypatch.setenv("FLTR_BATCH_SIZE", "many")
    with pytest.raises(SystemExit), output.errors_told(as_json=False):
        output.read_settings()
    said = capsys.readouterr().err
    assert "FLTR_BATCH_SIZE" in said
    assert "hunter2" not in said
