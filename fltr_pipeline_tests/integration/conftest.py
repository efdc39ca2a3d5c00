"""Fixtures of the integration tests.

Belongs here: an `fltr` database alone, as tests of single queries need it. Does not: what other folders use too.
"""

import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from pydantic import SecretStr

from fltr_pipeline.stores.database import engine_for
from fltr_pipeline.stores.schema import init_fltr
from fltr_pipeline_tests.queries import APPLICATION_TABLES, Copy, Fltr


@pytest.fixture(scope="session")
def fltr_templates(postgres_server: str, templates: tuple[str, str]) -> dict[str, str]:
    """Two kinds of `fltr` to copy: `text`, as `db init` makes it, and `uuid`, upon the application's own tables."""
    name = f"uuid_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    url = postgres_server.replace("/postgres?", f"/{name}?", 1)
    with psycopg.connect(url) as connection:
        connection.execute(APPLICATION_TABLES.encode())
    init_fltr(url)
    return {"text": templates[0], "uuid": name}


@pytest.fixture(scope="session")
def copy_of_fltr(postgres_server: str, fltr_templates: dict[str, str]) -> Callable[[str], Copy]:
    """A function that copies the template of that kind; with it comes the function that drops the copy."""

    def copy(kind: str) -> Copy:
        name = f"t_{uuid.uuid4().hex[:12]}"
        fltr = Fltr(engine_for(SecretStr(postgres_server.replace("/postgres?", f"/{name}?", 1))))

        def drop() -> None:
            fltr.engine.dispose()
            with psycopg.connect(postgres_server, autocommit=True) as connection:
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())

        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{fltr_templates[kind]}"'.encode())
        return fltr, drop

    return copy


@pytest.fixture(params=["text", "uuid"])
def fltr(request: pytest.FixtureRequest, copy_of_fltr: Callable[[str], Copy]) -> Iterator[Fltr]:
    """A fresh `fltr`, once with text ids and once upon the application's tables with uuid ids."""
    fltr, drop = copy_of_fltr(request.param)
    yield fltr
    drop()
