"""Search shows what the manifest says, whatever lies in Milvus."""

from collections import Counter
from typing import Any

import pytest

from fltr_pipeline.models import VectorRow
from fltr_pipeline.pipeline import search as finder
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.search import Mode, search
from fltr_pipeline.stores.fltr import manifest
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.vectors import MAX_HITS, VectorStore
from fltr_pipeline_tests.moments import before
from fltr_pipeline_tests.vectors import ON_EACH_MILVUS
from fltr_pipeline_tests.world import World

pytestmark = ON_EACH_MILVUS

BREAD = "Flour, water, salt and yeast; knead, let it rise, bake at 220 degrees."
OVEN = "Bread is baked in an oven."


@pytest.fixture
def books(world: World) -> Dataset:
    """One searchable document."""
    dataset = world.dataset(world.user())
    world.upload(dataset, {"bread.txt": BREAD.encode()})
    world.process(dataset)
    return dataset


def found(world: World, dataset: Dataset, k: int = 10) -> list[str]:
    return [h.place.text for h in search(world.services, dataset.id, "bread", k=k)]


def insert(world: World, dataset_id: str, document_id: str, keys: list[str]) -> None:
    """Into Milvus alone: better hits than all others."""
    vector = world.services.model.encode(["bread"])[0]
    world.services.vectors.insert([VectorRow(key, dataset_id, document_id, BREAD, vector) for key in keys])


def offered(world: World, mode: Mode) -> Mode:
    """A server without words has dense search only."""
    return mode if world.services.vectors.ensure().bm25 else "dense"


def publish(world: World, dataset: Dataset, text: str) -> None:
    """A new version of its document, of which nothing is kept; what was there before is swept."""
    world.upload(dataset, {"bread.txt": text.encode()})
    world.process(dataset)


def test_a_hit_under_another_dataset_counts_in_neither(world: World, books: Dataset) -> None:
    other = world.dataset(world.user(), "other")
    world.upload(other, {"other.txt": BREAD.encode() + b" Of another customer."})
    world.process(other)
    ((key, document_id),) = world.rows(
        "SELECT c.key, c.document_id FROM pipeline.chunks c JOIN pipeline.documents USING (document_id)"
        " WHERE dataset_id = %s",
        other.id,
    )
    assert found(world, other) == [BREAD + " Of another customer."]
    world.services.vectors.delete([key])
    insert(world, books.id, document_id, [key])
    assert (found(world, books), found(world, other)) == ([BREAD], [])
    world.services.vectors.delete([key])


def test_better_hits_that_do_not_count_do_not_push_out_those_that_do(world: World, books: Dataset) -> None:
    strays = [f"stray-{books.id}-{n}" for n in range(9)]
    insert(world, books.id, "nobody", strays)
    assert found(world, books, k=1) == [BREAD]
    world.services.vectors.delete(strays)


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_a_document_that_is_published_between_milvus_answer_and_the_look_at_the_manifest_is_found(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    mode = offered(world, mode)
    questions = before(monkeypatch, 0, VectorStore, "search", lambda: None)
    before(monkeypatch, 1, manifest, "places", lambda: publish(world, books, OVEN))
    hits = search(world.services, books.id, "bread", mode=mode)
    assert [(h.place.text, h.place.page, h.place.start, h.place.end) for h in hits] == [(OVEN, 1, 0, len(OVEN))]
    assert len(questions) == 2


def test_the_best_hit_is_not_left_out_for_it_is_published_meanwhile_although_enough_others_are_found(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that does not count makes the first question a second one; that asks for more than is wanted."""
    world.upload(books, {"treaty.txt": b"The treaty of Westphalia ended the thirty years war."})
    world.process(books)
    insert(world, books.id, "nobody", [stray := f"stray-{books.id}"])
    before(monkeypatch, 2, manifest, "places", lambda: publish(world, books, OVEN))
    assert found(world, books, k=1) == [OVEN]
    world.services.vectors.delete([stray])


def test_a_document_that_is_deleted_between_milvus_answer_and_the_look_at_the_manifest_is_not_found(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = before(monkeypatch, 0, VectorStore, "search", lambda: None)
    before(monkeypatch, 1, manifest, "places", lambda: world.change("DELETE FROM documents"))
    assert (found(world, books), len(questions)) == ([], 1)


def test_where_nothing_is_published_meanwhile_one_question_and_one_look_do(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((document_id,),) = world.rows("SELECT id::text FROM documents WHERE dataset_id = %s", books.id)
    questions = before(monkeypatch, 0, VectorStore, "search", lambda: None)
    looks = before(monkeypatch, 0, manifest, "places", lambda: None)
    assert (found(world, books), len(questions), len(looks)) == ([BREAD], 1, 1)
    insert(world, books.id, document_id, [stray := f"stray-{books.id}"])
    assert (found(world, books), len(questions), len(looks)) == ([BREAD], 3, 3), "was it what search was to find?"
    world.services.vectors.delete([stray])


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_however_many_rows_of_documents_that_are_gone_lie_nearer_the_live_ones_are_found(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    """More rows than Milvus gives at once, and so many documents that they fill a question."""
    mode = offered(world, mode)
    monkeypatch.setattr(finder, "MAX_HITS", 8)
    monkeypatch.setattr(finder, "_REFUSED", 3)
    strays = [f"stray-{books.id}-{n}" for n in range(60)]
    for part in range(3):
        insert(world, books.id, f"gone-{part}", strays[part::3])
    hits = search(world.services, books.id, "bread", k=2, mode=mode)
    assert [h.place.text for h in hits] == [BREAD]
    world.services.vectors.delete(strays)


def test_a_question_is_asked_so_many_times_and_no_more(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "MAX_HITS", 2)
    strays = [f"stray-{books.id}-{n}" for n in range(60)]
    for n, key in enumerate(strays):
        insert(world, books.id, f"gone-{n}", [key])
    asked = Counter[str]()
    ask = VectorStore.search

    def counted(self: VectorStore, *args: Any, **options: Any) -> Any:
        asked[self.collection] += 1
        return ask(self, *args, **options)

    monkeypatch.setattr(VectorStore, "search", counted)
    assert found(world, books, k=1) == []
    assert asked.total() == finder.ROUNDS
    world.services.vectors.delete(strays)


def test_however_many_stale_rows_of_the_live_document_itself_lie_nearer_it_is_found(
    world: World, books: Dataset
) -> None:
    ((document_id,),) = world.rows("SELECT id::text FROM documents WHERE dataset_id = %s", books.id)
    strays = [f"stray-{books.id}-{n}" for n in range(90)]
    insert(world, books.id, document_id, strays)
    assert found(world, books, k=1) == [BREAD]
    world.services.vectors.delete(strays)


def test_as_many_hits_as_milvus_can_give_may_be_asked_for(world: World, books: Dataset) -> None:
    """Fewer than that are live, so more is fetched, and never more than Milvus allows."""
    strays = [f"stray-{books.id}-{n}" for n in range(1100)]
    insert(world, books.id, "nobody", strays)
    assert found(world, books, k=1100) == found(world, books, k=MAX_HITS) == [BREAD]
    world.services.vectors.delete(strays)


def test_retired_vectors_and_those_in_flight_do_not_count(world: World, books: Dataset) -> None:
    def in_milvus() -> int:
        return len(world.keys(books))

    work = Embed(world.services)
    finish = work.finish
    seen: list[tuple[list[str], int]] = []

    def looked_at(results: object) -> set[str]:
        seen.append((found(world, books), in_milvus()))
        return finish(results)  # type: ignore[arg-type]

    work.finish = looked_at  # type: ignore[method-assign]
    world.upload(books, {"bread.txt": OVEN.encode()})
    world.extract(books)
    world.stage(Plan(world.services), books)
    world.stage(work, books)
    assert seen == [([BREAD], 2)]
    assert (found(world, books), in_milvus()) == ([OVEN], 2)


@pytest.mark.parametrize("what", ["document", "dataset", "owner", "owner's balance"])
def test_what_is_deleted_is_out_of_search_at_once(world: World, books: Dataset, what: str) -> None:
    if what == "document":
        world.change("DELETE FROM documents")
    elif what == "dataset":
        world.change("ALTER TABLE documents DROP CONSTRAINT documents_dataset_id_datasets_id_fk")
        world.change("DELETE FROM datasets")
    elif what == "owner":
        world.change_auth("DELETE FROM users WHERE id = %s", books.user_id)
    else:
        world.change_auth("DELETE FROM user_credits WHERE user_id = %s", books.user_id)
    assert found(world, books) == ([BREAD] if what == "owner's balance" else [])


def test_a_document_that_was_moved_is_found_in_neither_dataset_until_a_pass_has_queued_it(
    world: World, books: Dataset
) -> None:
    other = world.dataset(world.user(), "other")
    world.change("UPDATE documents SET dataset_id = %s", other.id)
    assert (found(world, books), found(world, other)) == ([], [])
