"""Fixtures of the integration tests.

Belongs here: an `fltr` database, or a collection of vectors, alone; what is moved. Does not: what others use.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from fltr_pipeline.stores.database import engine_for
from fltr_pipeline.stores.schema import init_fltr
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests.databases import Databases
from fltr_pipeline_tests.queries import APPLICATION_TABLES, Copy, Fltr
from fltr_pipeline_tests.shelves import TEXTS, Encoded, Shelves
from fltr_pipeline_tests.vectors import DIMENSION, new_name
from fltr_pipeline_tests.world import World


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
def milvus_kind(request: pytest.FixtureRequest) -> str:
    """`lite`, or what `ON_EACH_MILVUS` asks for."""
    return getattr(request, "param", "lite")


@pytest.fixture
def milvus_uri(request: pytest.FixtureRequest, milvus_kind: str, milvus_uri: str) -> str:
    """The address of a Milvus of that kind."""
    uri: str = request.getfixturevalue("milvus_server_uri") if milvus_kind == "server" else milvus_uri
    return uri


@pytest.fixture(scope="session")
def server_store(milvus_server_uri: str) -> VectorStore:
    return new_store(milvus_server_uri)


@pytest.fixture
def store(request: pytest.FixtureRequest, milvus_kind: str, milvus_uri: str) -> VectorStore:
    """An empty collection. A server takes seconds to load a new one: there the first is emptied and used again."""
    if milvus_kind == "lite":
        return new_store(milvus_uri)
    store: VectorStore = request.getfixturevalue("server_store")
    store.delete([key for key, _ in store.every_key()])
    return store


def new_store(uri: str) -> VectorStore:
    store = VectorStore(uri, None, collection=new_name(), dimension=DIMENSION)
    store.ensure()
    return store


@pytest.fixture
def milvus(milvus_uri: str) -> Any:
    """The raw client, for what other users of the server do."""
    from pymilvus import MilvusClient

    return MilvusClient(milvus_uri)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Encoded:
    """The model, cheaply, and what it was asked for."""
    asked = Encoded()

    def encode(model: EmbeddingModel, texts: Sequence[str]) -> list[list[float]]:
        asked.texts += texts
        return [[1.0, len(text) / 1000] + [0.0] * (model.dimension - 2) for text in texts]

    monkeypatch.setattr(EmbeddingModel, "encode", encode)
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "60")
    return asked


@pytest.fixture
def shelves(world: World, encoded: Encoded) -> Shelves:
    payer, other = world.user(50), world.user(50)
    books = world.dataset(payer)
    ids = world.upload(books, {name: text.encode() for name, text in TEXTS.items()})
    world.process(books)
    world.sweep_all()  # what other tests left in Milvus
    encoded.texts.clear()
    return Shelves(payer, books, other, world.dataset(other, "other"), ids)
