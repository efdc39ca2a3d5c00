"""Fixtures of the integration tests.

Belongs here: an `fltr` database, or a collection of vectors, alone. Does not: what other folders use too.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from fltr_pipeline.stores.database import engine_for
from fltr_pipeline.stores.schema import init_fltr
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.databases import Databases
from fltr_pipeline_tests.queries import APPLICATION_TABLES, Copy, Fltr
from fltr_pipeline_tests.vectors import DIMENSION, new_name


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
def copy_of_fltr(databases: Databases, fltr_templates: dict[str, str]) -> Callable[[str], Copy]:
    """A function that makes a fresh `fltr` of that kind, for a `with` statement."""

    @contextmanager
    def copy(kind: str) -> Iterator[Fltr]:
        with databases.copy(fltr_templates[kind]) as url:
            fltr = Fltr(engine_for(SecretStr(url)))
            yield fltr
            fltr.engine.dispose()

    return copy


@pytest.fixture(params=["text", "uuid"])
def fltr(request: pytest.FixtureRequest, copy_of_fltr: Callable[[str], Copy]) -> Iterator[Fltr]:
    """A fresh `fltr`, once with text ids and once upon the application's tables with uuid ids."""
    with copy_of_fltr(request.param) as fltr:
        yield fltr


@pytest.fixture
def store(milvus_uri: str) -> VectorStore:
    store = VectorStore(milvus_uri, None, collection=new_name(), dimension=DIMENSION)
    store.ensure()
    return store


@pytest.fixture
def milvus(milvus_uri: str) -> Any:
    """The raw client, for what other users of the server do."""
    from pymilvus import MilvusClient

    return MilvusClient(milvus_uri)
