"""Search for words: with BM25 on a real Milvus Lite server, and what a Milvus server from before it answers."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import pytest

from fltr_pipeline.errors import InvalidValue, UnsupportedCapability
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.vectors import ON_EACH_MILVUS, dense, row

MODES: tuple[Literal["bm25", "hybrid"], ...] = ("bm25", "hybrid")


@ON_EACH_MILVUS
def test_a_server_without_bm25_says_so_and_serves_dense_search_alone(store: VectorStore, milvus_kind: str) -> None:
    answers: dict[str, AbstractContextManager[object]] = {
        "lite": nullcontext(),
        "server": pytest.raises(UnsupportedCapability, match=r"has no BM25.*2\.5 or later \(this server is v2\.3\.5"),
    }
    store.insert([row("k", text="fox")])
    assert store.ensure().bm25 == (milvus_kind == "lite")
    for mode in MODES:
        with answers[milvus_kind]:
            assert [h.key for h in store.search("ds", vector=[1, 0, 0, 0], text="fox", k=1, mode=mode)] == ["k"]
    assert dense(store, "ds", 1, 0, 0, 0) == ["k"]


def test_datasets_do_not_see_each_others_words(store: VectorStore) -> None:
    store.insert([row(f"a{n}", "ds-a", text="fox") for n in range(5)] + [row("b", "ds-b", text="fox")])
    for mode in MODES:
        hits = store.search("ds-b", vector=[1, 0, 0, 0], text="fox", k=9, mode=mode)
        assert [hit.key for hit in hits] == ["b"]


def test_bm25_finds_words_and_a_larger_score_is_better(store: VectorStore) -> None:
    texts = {"none": "the hen", "once": "a fox and a very long tale of hens", "twice": "fox, fox"}
    store.insert([row(key, text=text) for key, text in texts.items()])
    hits = store.search("ds", vector=None, text="Fox", k=10, mode="bm25")
    assert [hit.key for hit in hits] == ["twice", "once"]
    assert hits[0].score > hits[1].score > 0
    assert store.search("ds", vector=None, text="zebra", k=10, mode="bm25") == []


def test_hybrid_puts_first_what_both_sides_like(store: VectorStore) -> None:
    store.insert([row(f"vector{n}", vector=(1, n / 100, 0, 0), text="hen") for n in range(1, 5)])
    store.insert([row(f"word{n}", vector=(0, 0, 1, n), text="fox") for n in range(1, 5)])
    store.insert([row("both", vector=(1, 0, 0, 0), text="fox fox")])
    hits = store.search("ds", vector=[1, 0, 0, 0], text="fox", k=3, mode="hybrid")
    assert hits[0].key == "both"
    assert len(hits) == 3
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_search_for_words_needs_a_text(store: VectorStore, text: str | None) -> None:
    with pytest.raises(InvalidValue, match="needs a text"):
        store.search("ds", vector=[1, 0, 0, 0], text=text, k=1, mode="hybrid")


def test_a_released_collection_is_loaded_and_asked_again(store: VectorStore, milvus: Any) -> None:
    store.insert([row("k")])
    milvus.release_collection(store.collection)
    assert [hit.key for hit in store.search("ds", vector=None, text="text", k=1, mode="bm25")] == ["k"]
