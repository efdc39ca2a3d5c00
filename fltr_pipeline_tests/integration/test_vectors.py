"""The vector store's rows and their vectors, on a real Milvus Lite server and on a real Milvus server."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fltr_pipeline.errors import InvalidValue
from fltr_pipeline.stores.vectors import TEXT_BYTES, VectorStore
from fltr_pipeline_tests.vectors import ON_EACH_MILVUS, dense, row

pytestmark = ON_EACH_MILVUS

# --- rows ------------------------------------------------------------------------------------------------------------


def test_what_is_inserted_is_present_at_once_and_what_is_deleted_is_gone_at_once(store: VectorStore) -> None:
    for number in range(20):
        store.insert([row(f"k{number}", vector=(1, number, 0, 0))])
        assert store.present([f"k{number}", "other"], "ds") == {f"k{number}"}
        assert f"k{number}" in dense(store, "ds", 1, number, 0, 0)
    store.delete([f"k{number}" for number in range(0, 20, 2)] + ["never-there"])
    left = {f"k{number}" for number in range(1, 20, 2)}
    assert store.present([f"k{number}" for number in range(20)], "ds") == left
    assert set(store.keys("ds")) == left
    assert set(dense(store, "ds", 1, 0, 0, 0, k=100)) == left


def test_a_vector_comes_back_as_it_was_inserted_and_can_be_inserted_again(store: VectorStore) -> None:
    vectors = {f"k{n}": (math.cos(n), math.sin(n), 0.1, -1 / 3) for n in range(5)}
    store.insert([row(key, vector=vector) for key, vector in vectors.items()])
    found = store.vectors([*vectors, "never-there"])
    assert {key: pytest.approx(vector) for key, vector in vectors.items()} == found
    store.insert([row(f"of-{key}", "other", vector=tuple(vector)) for key, vector in found.items()])
    assert store.vectors([f"of-{key}" for key in vectors]) == {f"of-{key}": found[key] for key in vectors}
    assert store.vectors([]) == {}


def test_datasets_do_not_see_each_other(store: VectorStore) -> None:
    store.insert([row(f"a{n}", "ds-a") for n in range(5)] + [row("b", "ds-b")])
    assert set(dense(store, "ds-a", 1, 0, 0, 0)) == {f"a{n}" for n in range(5)}
    assert dense(store, "ds-b", 1, 0, 0, 0) == ["b"]
    assert store.present(["a1", "b"], "ds-b") == {"b"}
    assert list(store.keys("ds-b")) == ["b"]
    assert dense(store, "ds-c", 1, 0, 0, 0) == []


def test_listing_and_reading_back_go_on_beyond_16_384_rows(store: VectorStore) -> None:
    keys = [f"{number:05d}" for number in range(20_000)]
    store.insert([row(key, vector=(1, int(key) % 7, 0, 0)) for key in keys] + [row("elsewhere", "ds-2")])
    assert list(store.keys("ds")) == keys
    assert store.present(keys, "ds") == set(keys)
    store.delete(keys[100:])
    assert list(store.keys("ds")) == keys[:100]


def test_insert_is_cut_into_messages_that_fit(store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fltr_pipeline.stores.vectors.store.INSERT_BYTES", 1_000)
    keys = [f"k{number}" for number in range(25)]
    store.insert([row(key, text="x" * 400) for key in keys] + [row("big", text="x" * 5_000)])
    assert store.present([*keys, "big"], "ds") == {*keys, "big"}


def test_no_rows_and_no_keys_are_fine(store: VectorStore) -> None:
    store.insert([])
    store.delete([])
    assert store.present([], "ds") == set()
    assert list(store.keys("ds")) == []


@pytest.mark.parametrize("letter", ["a", "é", "語", "🦊"])
def test_text_up_to_the_limit_in_bytes_is_kept(store: VectorStore, letter: str) -> None:
    fits = letter * (TEXT_BYTES // len(letter.encode()))
    store.insert([row("fits", text=fits)])
    assert store.present(["fits"], "ds") == {"fits"}
    with pytest.raises(InvalidValue, match=r"chunk long of document doc has 65,5\d\d bytes.*cut it smaller"):
        store.insert([row("fine"), row("long", text=fits + letter)])
    assert store.present(["fine", "long"], "ds") == set()


@pytest.mark.parametrize("bad", ['x" or dataset_id != "', "x' or true", "", "a" * 65, "x\\", "x\ny", "*"])
def test_hostile_ids_reach_no_expression(store: VectorStore, bad: str) -> None:
    store.insert([row("k")])
    attempts: list[Callable[[], object]] = [
        lambda: store.search(bad, vector=[1, 0, 0, 0], text=None, k=1),
        lambda: store.present([bad], "ds"),
        lambda: store.present(["k"], bad),
        lambda: store.delete([bad]),
        lambda: list(store.keys(bad)),
        lambda: store.insert([row(bad)]),
        lambda: store.insert([row("k2", dataset=bad)]),
        lambda: store.insert([row("k2", document=bad)]),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidValue):
            attempt()
    assert list(store.keys("ds")) == ["k"]


STRANGE = [
    "doc/1#3", "a b", "it's", 'say "x"', "back\\slash", "end\\", "\\", "\\n", "two\nlines", "tab\t", "bell\a", "nul\0",
    "cr\r", "é", "語", "🦊", "\u2028", "%", "{x}", '"] or key in ["', '" or key != "', "..", "a" * 64,
]  # fmt: skip
"""Keys that other programs may have given their rows."""


def test_what_others_inserted_is_listed_and_deleted_whatever_its_key_is(
    store: VectorStore, milvus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fltr_pipeline.stores.vectors.store.PAGE_ROWS", 1)
    theirs = [
        {"key": key, "dataset_id": key, "document_id": "x", "text": "text", "vector": [1.0, 0, 0, 0]} for key in STRANGE
    ]
    milvus.insert(store.collection, theirs)
    store.insert([row("ours")])
    assert sorted(store.every_key()) == sorted([*((key, key) for key in STRANGE), ("ours", "ds")])
    for key in STRANGE:
        assert store.datasets_of([key, "never-there"]) == {key: key}
    store.delete_listed(STRANGE)
    assert store.datasets_of([*STRANGE, "ours"]) == {"ours": "ds"}
    assert list(store.every_key()) == [("ours", "ds")]


@pytest.mark.parametrize("vector", [(), (1, 0, 0), (1, 0, 0, 0, 0), (math.nan, 0, 0, 0), (math.inf, -math.inf, 0, 0)])
def test_a_vector_of_another_size_or_not_finite_is_refused(store: VectorStore, vector: tuple[float, ...]) -> None:
    with pytest.raises(InvalidValue):
        store.insert([row("k", vector=vector)])
    with pytest.raises(InvalidValue):
        store.search("ds", vector=vector, text=None, k=1)
    assert list(store.keys("ds")) == []


# --- search ----------------------------------------------------------------------------------------------------------


def test_dense_scores_are_cosines_best_first(store: VectorStore) -> None:
    vectors = {"same": (1, 0, 0, 0), "near": (1, 1, 0, 0), "across": (0, 0, 1, 0), "against": (-1, 0, 0, 0)}
    store.insert([row(key, vector=vector, document=f"doc-{key}") for key, vector in vectors.items()])
    hits = store.search("ds", vector=[2, 0, 0, 0], text=None, k=10)
    assert [hit.key for hit in hits] == ["same", "near", "across", "against"]
    assert [hit.score for hit in hits] == pytest.approx([1, 1 / math.sqrt(2), 0, -1], abs=1e-6)
    assert hits[0].document_id == "doc-same"
    assert len(store.search("ds", vector=[1, 0, 0, 0], text=None, k=2)) == 2


@pytest.mark.parametrize("k", [0, -1, 16_385])
def test_k_is_within_what_milvus_answers(store: VectorStore, k: int) -> None:
    with pytest.raises(InvalidValue, match="k must be"):
        store.search("ds", vector=[1, 0, 0, 0], text=None, k=k)


def test_what_the_server_overlooks_once_is_present(store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Milvus Lite does with rows that another's insert makes it write to disk while it looks."""
    store.insert([row(f"k{number}") for number in range(3)])
    looks: list[Sequence[str]] = []
    look = VectorStore._look

    def overlooks(of: VectorStore, keys: Sequence[str]) -> dict[str, str]:
        looks.append(keys)
        return look(of, keys[:1] if len(looks) == 1 else keys)

    monkeypatch.setattr(VectorStore, "_look", overlooks)
    assert store.present(["k0", "k1", "k2", "other"], "ds") == {"k0", "k1", "k2"}
    assert looks[1:] == [["k1", "k2", "other"]]
    looks.clear()
    assert store.datasets_of(["k0", "k1", "k2"]) == dict.fromkeys(["k0", "k1", "k2"], "ds"), "nothing is taken for gone"


def test_a_released_collection_is_loaded_and_asked_again(store: VectorStore, milvus: Any) -> None:
    store.insert([row("k")])
    uses: list[Callable[[], object]] = [
        lambda: dense(store, "ds", 1, 0, 0, 0),
        lambda: list(store.keys("ds")),
        lambda: list(store.present(["k"], "ds")),
    ]
    for use in uses:
        milvus.release_collection(store.collection)
        assert use() == ["k"]
