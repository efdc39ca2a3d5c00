"""Behind a change of our configuration, customers pay for what they changed, and for nothing else."""

import pytest

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.reprocess import requeue
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.shelves import Encoded
from fltr_pipeline_tests.world import World

PARAGRAPHS = [f"Paragraph {n} tells of the {n}th year of the war, and of bread, salt and yeast." for n in range(40)]
OTHERS = {"FLTR_CHUNK_TOKENS": "30", "FLTR_PDF_ENGINE": "pypdf"}


def file_of(paragraphs: list[str]) -> bytes:
    return "\n\n".join(paragraphs).encode()


@pytest.fixture
def dataset(world: World, encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A searchable document, at ten tokens a credit."""
    monkeypatch.setenv("FLTR_PRICES__EMBED_TOKENS", "10")
    monkeypatch.setenv("FLTR_PRICES__EXTRACT_PAGES", "1")
    dataset = world.dataset(world.user(credits=1000))
    world.upload(dataset, {"a.txt": file_of(PARAGRAPHS)})
    world.process(dataset)
    encoded.texts.clear()
    return dataset


def charged(world: World) -> int:
    query = "SELECT -coalesce(sum(amount), 0) FROM credit_transactions WHERE type IN ('usage', 'refund')"
    ((used,),) = world.auth_rows(query)
    return int(used)


def another(world: World, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    before = world.services.fingerprint
    monkeypatch.setenv(setting, OTHERS[setting])
    del world.services
    assert world.services.fingerprint != before


@pytest.mark.parametrize("setting", OTHERS)
def test_the_same_bytes_again_are_free(
    world: World, dataset: Dataset, encoded: Encoded, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = charged(world)
    another(world, monkeypatch, setting)
    world.upload(dataset, {"a.txt": file_of(PARAGRAPHS)})
    assert [r.done for r in world.process(dataset)[1:]] == [1, 1, 1]
    assert (charged(world), bool(encoded.texts), compare(world.services, dataset.id).none) == (spent, True, True)


@pytest.mark.parametrize("setting", OTHERS)
def test_of_an_edit_the_changed_chunks_are_charged_and_all_are_made_anew(
    world: World, dataset: Dataset, encoded: Encoded, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    another(world, monkeypatch, setting)
    edited = [*PARAGRAPHS[:20], "Here a word was changed.", *PARAGRAPHS[21:]]
    world.upload(dataset, {"a.txt": file_of(edited)})
    *_, planned, embedded = world.process(dataset)
    assert 0 < planned.counts["tokens_new"] < planned.counts["tokens"] / 4
    assert embedded.credits_charged == -(-planned.counts["tokens_new"] // 10)
    assert len(encoded.texts) == planned.counts["chunks"] > 8
    assert compare(world.services, dataset.id).none


def test_a_redo_that_the_customer_asked_for_costs_what_it_takes(
    world: World, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    another(world, monkeypatch, "FLTR_CHUNK_TOKENS")
    requeue(world.services, dataset.id, ReprocessMode.stale, charge=True)
    *_, planned, embedded = world.process(dataset)
    assert planned.counts["tokens_new"] == planned.counts["tokens"]
    assert embedded.credits_charged == -(-planned.counts["tokens"] // 10)
