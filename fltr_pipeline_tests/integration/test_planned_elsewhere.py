"""What a worker of another configuration planned is planned anew before it is embedded."""

from collections.abc import Iterator
from typing import Any

import pytest

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests.integration.test_pipeline_again import long_text
from fltr_pipeline_tests.world import World

_WINDOW = 64  # tokens, of the model that embeds; the one that planned read more


@pytest.fixture
def payer(world: World, monkeypatch: pytest.MonkeyPatch) -> Payer:
    monkeypatch.setenv("FLTR_PRICES__PLAN", "1")
    return world.user(credits=100)


@pytest.fixture
def planned(world: World, payer: Payer) -> Dataset:
    """An upload that waits to be embedded."""
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": long_text(6)})
    world.extract(dataset)
    assert world.stage(Plan(world.services), dataset).done == 1
    return dataset


@pytest.fixture
def shorter(world: World, planned: Dataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From here on the model's window is a short one."""
    monkeypatch.setattr(EmbeddingModel, "window", _WINDOW)
    del world.services
    world.services.vectors.ensure()
    yield
    world.services.vectors.drop()


@pytest.mark.usefixtures("shorter")
def test_what_was_planned_for_a_longer_window_is_planned_anew_and_paid_for_once(
    world: World, planned: Dataset, payer: Payer
) -> None:
    report = world.stage(Embed(world.services), planned)
    assert (report.done, report.failures) == (0, [])
    assert world.rows("SELECT stage, lease_until, error_code FROM pipeline.documents") == [("plan", None, None)]
    assert world.launchable() == {planned.id: 1}
    _, _, again, embedded = world.process(planned)
    assert (again.done, again.credits_charged, embedded.done) == (1, 0, 1)
    assert world.statuses(planned) == {"a.txt": "ready"}
    fingerprints = world.rows("SELECT fingerprint, chunks FROM pipeline.generations")
    assert fingerprints == [(world.services.fingerprint, len(world.keys(planned)))]
    assert compare(world.services, planned.id).none
    assert (world.statement(payer).charged, world.statement(payer).held) == (3, 0)
    assert world.launchable() == {}


def test_what_an_attempt_reserved_and_inserted_before_is_used_and_swept(
    world: World, planned: Dataset, payer: Payer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    old, insert = world.services.vectors, VectorStore.insert

    def lost(*arguments: Any) -> None:
        insert(*arguments)
        raise StoreUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(VectorStore, "insert", lost)
        with pytest.raises(StoreUnavailable):
            world.stage(Embed(world.services), planned)
    assert world.statement(payer).held == 1
    assert set(old.keys(planned.id))
    world.change("UPDATE pipeline.documents SET retry_at = NULL")
    request.getfixturevalue("shorter")
    for _ in range(2):
        world.process(planned)
    assert world.statuses(planned) == {"a.txt": "ready"}
    assert (world.statement(payer).charged, world.statement(payer).held) == (3, 0)
    assert set(old.keys(planned.id)) == set(), "swept where it was inserted"
    assert compare(world.services, planned.id).none
