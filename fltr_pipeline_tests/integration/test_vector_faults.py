"""Servers that are killed, that refuse, and that are not there. The one fake is a server that refuses."""

import socket
import threading
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from pydantic import SecretStr

from fltr_pipeline.errors import ConfigurationError, FltrError, StoreUnavailable
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.milvus_lite import MilvusLite, free_port
from fltr_pipeline_tests.moments import wait_for
from fltr_pipeline_tests.vectors import DIMENSION, dense, new_name, row


def test_a_killed_server_loses_nothing_and_the_same_store_goes_on(tmp_path: Path) -> None:
    with MilvusLite(tmp_path / "milvus") as server:
        store = VectorStore(server.uri, None, collection=new_name(), dimension=DIMENSION, timeout=5)
        store.ensure()
        store.insert([row(f"k{n}", text="fox", vector=(1, n, 0, 0)) for n in range(100)])
        store.delete(["k0"])
        server.stop(SIGKILL)
        with pytest.raises(StoreUnavailable):
            store.present(["k1"], "ds")
        server.start()
        assert len(store.present([f"k{n}" for n in range(100)], "ds")) == 99
        server.stop(SIGKILL)
        server.start()
        assert not store.ensure().created
        assert dense(store, "ds", 1, 1, 0, 0, k=1) == ["k1"]
        assert len(list(store.keys("ds"))) == 99
        assert len(store.search("ds", vector=None, text="fox", k=200, mode="bm25")) == 99


def test_a_server_that_comes_back_loses_nothing_of_writers_that_never_paused(tmp_path: Path) -> None:
    """With threads, Milvus Lite opens a collection for each of the first calls, and keeps the rows of one of them."""
    writers, over, rounds = 6, threading.Event(), Counter[int]()
    with MilvusLite(tmp_path / "milvus") as server:
        stores = [
            VectorStore(server.uri, None, collection="c", dimension=DIMENSION, timeout=30) for _ in range(writers)
        ]
        stores[0].ensure()
        stores[0].insert([row(f"before{n}") for n in range(3_000)])  # some time to open them

        def write(writer: int) -> list[str]:
            kept = list[str]()
            while not over.is_set():
                keys = [uuid.uuid4().hex for _ in range(5)]
                with suppress(StoreUnavailable):
                    stores[writer].insert([row(key) for key in keys])
                    kept += stores[writer].present(keys, "ds")
                    rounds[writer] += 1
            return kept

        def all_have_written() -> None:
            before = dict(rounds)
            wait_for(lambda: all(rounds[writer] > before.get(writer, 0) + 2 for writer in range(writers)))

        with ThreadPoolExecutor(writers) as pool:
            at_work = [pool.submit(write, writer) for writer in range(writers)]
            for _ in range(2):
                all_have_written()
                server.stop(SIGKILL)
                server.start()
            all_have_written()
            over.set()
        written = {key for writer in at_work for key in writer.result()}
        assert len(written) > writers
        assert written - set(stores[0].keys("ds")) == set()


def test_a_server_that_is_not_there_is_unavailable_and_no_secret_is_told() -> None:
    uri = f"http://admin:uri-secret@127.0.0.1:{free_port()}"
    store = VectorStore(uri, SecretStr("token-secret"), collection="c", dimension=DIMENSION, timeout=5)
    uses: list[Callable[[], object]] = [
        store.ensure,
        lambda: store.insert([row("k")]),
        lambda: store.present(["k"], "ds"),
        lambda: store.delete(["k"]),
        lambda: list(store.keys("ds")),
        lambda: dense(store, "ds", 1, 0, 0, 0),
    ]
    for use in uses:
        with pytest.raises(StoreUnavailable, match=r"Milvus at http://127.0.0.1:\d+: .*is the server up") as caught:
            use()
        assert "secret" not in str(caught.value)
    assert "secret" not in repr(store)


def test_a_server_that_accepts_and_says_nothing_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StoreUnavailable):
            VectorStore(uri, None, collection="c", dimension=DIMENSION, timeout=1).ensure()


@contextmanager
def refusing_server(status: str) -> Iterator[str]:
    """A gRPC server that answers every call with this status."""
    import grpc

    class Refuse:
        def service(self, _: object) -> Any:
            def abort(request: bytes, context: Any) -> None:
                context.abort(grpc.StatusCode[status], f"{status}: token-secret is not welcome")

            return grpc.unary_unary_rpc_method_handler(abort)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Refuse()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("UNAUTHENTICATED", ConfigurationError),
        ("PERMISSION_DENIED", ConfigurationError),
        ("RESOURCE_EXHAUSTED", StoreUnavailable),
        ("DEADLINE_EXCEEDED", StoreUnavailable),
        ("UNAVAILABLE", StoreUnavailable),
        ("INTERNAL", StoreUnavailable),
    ],
)
def test_a_refusal_becomes_the_fitting_error(status: str, error: type[FltrError]) -> None:
    with refusing_server(status) as uri:
        store = VectorStore(uri, SecretStr("token-secret"), collection="c", dimension=DIMENSION, timeout=2)
        with pytest.raises(error) as caught:
            store.ensure()
    assert "token-secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["", "milvus:19530", "./milvus.db", "/tmp/milvus.db", "s3://bucket"])
def test_an_address_that_is_no_servers_is_a_configuration_error(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="FLTR_MILVUS_URI"):
        VectorStore(uri, None, collection="c", dimension=DIMENSION)


@pytest.mark.parametrize(
    "uri",
    [
        "http://root:hunter/two@127.0.0.1:9",
        "http://root:hunter#two@127.0.0.1:9",
        "http://root:hunter?two@127.0.0.1:9",
        "http://root:12/hunter@127.0.0.1:9",
        "http://root:a@hunter/two@127.0.0.1:9",
        "http://hunter/two@127.0.0.1:9",
        "http://root:hunter[two@127.0.0.1:9",
        "http://root:hunter\N{CARE OF}two@127.0.0.1:9",
        "http://root:a@127.0.0.1:hunter",
        "root:hunter@127.0.0.1:9",
        "root:hunter",
    ],
)
def test_an_address_that_does_not_parse_is_a_configuration_error_and_not_repeated(uri: str) -> None:
    with pytest.raises(ConfigurationError, match=r"FLTR_MILVUS_URI.*FLTR_MILVUS_TOKEN") as caught:
        VectorStore(uri, None, collection="c", dimension=DIMENSION)
    assert "hunter" not in "".join(traceback.format_exception(caught.value, limit=0))


def test_a_token_in_the_address_is_not_told() -> None:
    with refusing_server("UNAUTHENTICATED") as uri:
        with_token = uri.replace("://", "://token-secret@")
        with pytest.raises(ConfigurationError) as caught:
            VectorStore(with_token, None, collection="c", dimension=DIMENSION, timeout=2).ensure()
    assert "token-secret" not in str(caught.value)


@pytest.mark.parametrize(("collection", "dimension", "timeout"), [("a b", 4, 1), ("", 4, 1), ("c", 0, 1), ("c", 4, 0)])
def test_settings_that_cannot_work_are_refused_at_once(collection: str, dimension: int, timeout: float) -> None:
    with pytest.raises(ConfigurationError):
        VectorStore("http://127.0.0.1:1", None, collection=collection, dimension=dimension, timeout=timeout)
