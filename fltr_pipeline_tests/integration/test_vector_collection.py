"""The collection on a Milvus Lite and a Milvus server: made once, by whoever is first; refused where it is another."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from threading import Timer
from typing import Any, Literal

import pytest

from fltr_pipeline.errors import (
    SchemaDrift,
    StoreUnavailable,
    UnsupportedCapability,
)
from fltr_pipeline.stores.vectors import CollectionFacts, VectorStore
from fltr_pipeline.stores.vectors.client import MilvusServer
from fltr_pipeline_tests.vectors import DIMENSION, ON_EACH_MILVUS, dense, new_name, row


@ON_EACH_MILVUS
def test_ensure_makes_the_collection_once(milvus_uri: str, milvus_kind: str) -> None:
    store = VectorStore(milvus_uri, None, collection=new_name(), dimension=DIMENSION)
    first, second = store.ensure(), store.ensure()
    assert (first.created, second.created) == (True, False)
    assert first.name == store.collection
    assert first.dimension == DIMENSION
    assert (first.bm25, first.server[:4]) == {"lite": (True, "milv"), "server": (False, "v2.3")}[milvus_kind]


def ensure(uri: str, name: str) -> CollectionFacts:
    return VectorStore(uri, None, collection=name, dimension=DIMENSION).ensure()


@ON_EACH_MILVUS
def test_many_threads_and_processes_may_ensure_at_once(milvus_uri: str, milvus_kind: str) -> None:
    name = new_name()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=spawn) as processes, ThreadPoolExecutor(4) as threads:
        calls = [pool.submit(ensure, milvus_uri, name) for pool in (processes, processes, processes, *[threads] * 4)]
        facts = [call.result() for call in calls]
    created = sum(fact.created for fact in facts)
    # A server takes the same definition again for done.
    assert created == 1 or (milvus_kind == "server" and created > 1)
    store = VectorStore(milvus_uri, None, collection=name, dimension=DIMENSION)
    store.insert([row("k")])
    assert dense(store, "ds", 1, 0, 0, 0) == ["k"]


def test_another_process_may_be_about_to_make_the_collection(milvus_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VectorStore(milvus_uri, None, collection=new_name(), dimension=DIMENSION)
    call = MilvusServer.call

    def late(server: MilvusServer, method: str, collection: str, **arguments: Any) -> Any:
        if method != "create_collection":
            return call(server, method, collection, **arguments)
        Timer(0.3, lambda: call(server, method, collection, **arguments)).start()
        raise StoreUnavailable("File exists")  # Milvus Lite makes its folder first, and knows it only in the end

    monkeypatch.setattr(MilvusServer, "call", late)
    assert not store.ensure().created
    store.insert([row("k")])
    assert dense(store, "ds", 1, 0, 0, 0) == ["k"]


@ON_EACH_MILVUS
def test_another_dimension_is_drift(store: VectorStore, milvus_uri: str) -> None:
    other = VectorStore(milvus_uri, None, collection=store.collection, dimension=DIMENSION + 1)
    with pytest.raises(SchemaDrift, match=r"vector is FLOAT_VECTOR\(4\), should be FLOAT_VECTOR\(5\).*drop this one"):
        other.ensure()


def make_collection(milvus: Any, name: str, *, metric: str = "COSINE", drop: str = "", key: str = "key") -> None:
    from pymilvus import DataType, MilvusClient

    schema = MilvusClient.create_schema(enable_dynamic_field=False)
    schema.add_field(key, DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("dataset_id", DataType.VARCHAR, max_length=64, is_partition_key=True)
    schema.add_field("document_id", DataType.VARCHAR, max_length=64)
    if drop != "text":
        schema.add_field("text", DataType.VARCHAR, max_length=65_535)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
    index = MilvusClient.prepare_index_params()
    index.add_index("vector", index_type="AUTOINDEX", metric_type=metric)
    milvus.create_collection(name, schema=schema, index_params=index)


@ON_EACH_MILVUS
def test_every_difference_of_a_foreign_collection_is_named(milvus_uri: str, milvus: Any) -> None:
    name = new_name()
    make_collection(milvus, name, drop="text", key="id")
    with pytest.raises(SchemaDrift) as caught:
        ensure(milvus_uri, name)
    message = str(caught.value)
    assert "field key is missing, should be VARCHAR(64) primary key" in message
    assert "field text is missing, should be VARCHAR(65535)" in message
    assert "field id is there, should not be" in message


@ON_EACH_MILVUS
def test_another_metric_is_drift(milvus_uri: str, milvus: Any) -> None:
    name = new_name()
    make_collection(milvus, name, metric="L2")
    with pytest.raises(SchemaDrift, match="index on vector has metric L2, should be COSINE"):
        ensure(milvus_uri, name)


def test_an_index_that_was_given_another_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Milvus of before names it `_default_idx_104`; Milvus Lite knows no names but the fields'."""
    indexes = {"_default_idx_104": {"field_name": "vector", "metric_type": "L2"}, "vector": {"field_name": "text"}}

    def answer(_: object, method: str, collection: str, *, field_name: str = "", index_name: str = "") -> object:
        return {"describe_index": indexes.get(index_name), "list_indexes": ["_default_idx_104"]}[method]

    monkeypatch.setattr("fltr_pipeline.stores.vectors.client.MilvusServer.call", answer)
    store = VectorStore("http://127.0.0.1:1", None, collection="c", dimension=DIMENSION)
    with pytest.raises(SchemaDrift, match="index on vector has metric L2, should be COSINE"):
        store._ensure_index("vector")


@ON_EACH_MILVUS
def test_milvus_lite_alone_searches_exactly(store: VectorStore, milvus: Any, milvus_kind: str) -> None:
    index = milvus.describe_index(store.collection, "vector")
    assert index["index_type"] == {"lite": "FLAT", "server": "AUTOINDEX"}[milvus_kind]


@ON_EACH_MILVUS
def test_a_collection_without_bm25_serves_dense_search_alone(milvus_uri: str, milvus: Any) -> None:
    name = new_name()
    make_collection(milvus, name)
    store = VectorStore(milvus_uri, None, collection=name, dimension=DIMENSION)
    assert not store.ensure().bm25
    store.insert([row("k")])
    assert dense(store, "ds", 1, 0, 0, 0) == ["k"]
    modes: tuple[Literal["bm25", "hybrid"], ...] = ("bm25", "hybrid")
    for mode in modes:
        with pytest.raises(UnsupportedCapability, match=f"{mode} search is not possible"):
            store.search("ds", vector=[1, 0, 0, 0], text="text", k=1, mode=mode)


@ON_EACH_MILVUS
def test_a_collection_is_found_by_its_alias(store: VectorStore, milvus_uri: str, milvus: Any) -> None:
    alias = new_name()
    milvus.create_alias(store.collection, alias)
    by_alias = VectorStore(milvus_uri, None, collection=alias, dimension=DIMENSION)
    facts = by_alias.ensure()
    assert (facts.name, facts.created) == (store.collection, False)
    by_alias.insert([row("k")])
    assert store.present(["k"], "ds") == set(by_alias.keys("ds")) == {"k"}


@ON_EACH_MILVUS
def test_without_ensure_a_missing_collection_is_drift(milvus_uri: str, milvus_kind: str) -> None:
    store = VectorStore(milvus_uri, None, collection=new_name(), dimension=DIMENSION)
    said = {"lite": "does not exist", "server": "collection not found"}[milvus_kind]
    with pytest.raises(SchemaDrift, match=f"{said}.*db init"):
        store.present(["k"], "ds")
