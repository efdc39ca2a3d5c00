"""Only so much text is in memory at a time, whatever waits."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline import embed, plan, reconcile
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import Published, check_published
from fltr_pipeline.stores.fltr import manifest, texts
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.integration.test_pipeline_again import long_text
from fltr_pipeline_tests.world import World

DOCUMENTS = 6
ROOM = 45_000  # for three of them, in characters


@pytest.fixture
def books(world: World) -> Dataset:
    """Searchable, and of each an edit of one paragraph waits."""
    dataset = world.dataset(world.user(1000))
    for changed in (None, 20):
        world.upload(dataset, {f"{n}.txt": b"%d. " % n + long_text(40, changed) for n in range(DOCUMENTS)})
        if changed is None:
            world.process(dataset)
    assert all(ROOM / 4 < length <= ROOM / 3 for (length,) in world.rows("SELECT length(content) FROM documents"))
    return dataset


def watched(monkeypatch: pytest.MonkeyPatch, *functions: Callable[..., dict[str, str]]) -> list[int]:
    """What each transaction loads, in characters."""
    loaded: list[int] = []
    for function in functions:

        def watching(*args: Any, function: Callable[..., dict[str, str]] = function) -> dict[str, str]:
            found = function(*args)
            loaded.append(sum(map(len, found.values())))
            return found

        monkeypatch.setattr(texts, function.__name__, watching)
    return loaded


def test_embedding_loads_as_much_as_fits_however_little_of_it_is_new(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "_GROUP_BYTES", ROOM)
    world.extract(books)
    world.stage(Plan(world.services), books)
    loaded = watched(monkeypatch, texts.staged_texts)
    report = world.stage(Embed(world.services), books)
    assert (report.done, sum(loaded) > ROOM) == (DOCUMENTS, True)
    assert max(loaded) <= ROOM


@pytest.mark.parametrize("another_configuration", [False, True])
def test_planning_counts_the_live_texts_too(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch, another_configuration: bool
) -> None:
    """Their words or their keys are in memory with what was extracted."""
    if another_configuration:
        monkeypatch.setenv("FLTR_CHUNK_TOKENS", "100")
        del world.services
    monkeypatch.setattr(plan, "_GROUP_BYTES", ROOM)
    world.extract(books)
    loaded = watched(monkeypatch, texts.staged_texts)
    former = watched(monkeypatch, texts.former_texts)
    report = world.stage(Plan(world.services), books)
    assert (report.done, len(loaded)) == (DOCUMENTS, DOCUMENTS), "each with its live text is as much as fits"
    assert bool(sum(former)) == another_configuration
    world.process(books, ReprocessMode.pending)
    assert set(world.statuses(books).values()) == {"ready"}


def test_the_check_behind_a_run_looks_at_a_page_of_documents_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user())
    ids = list(world.upload(dataset, {f"{n}.txt": f"Text number {n}.".encode() for n in range(5)}).values())
    world.process(dataset)
    lost = min(world.keys(dataset))
    world.services.vectors.delete([lost])
    monkeypatch.setattr(reconcile, "DOCUMENTS_PER_PAGE", 2)
    pages: list[int] = []
    keys_of = manifest.keys_of

    def watching(tx: Connection, dataset_id: str, document_ids: Sequence[str]) -> set[str]:
        pages.append(len(document_ids))
        return keys_of(tx, dataset_id, document_ids)

    monkeypatch.setattr(manifest, "keys_of", watching)
    assert check_published(world.services, dataset.id, ids) == Published(5, 5, frozenset({lost}))
    assert pages == [2, 2, 1]
