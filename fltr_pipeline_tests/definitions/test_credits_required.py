"""No asset op can work without reserving before and settling after."""

import dagster as dg
import pytest
from sqlalchemy import Engine

from fltr_pipeline.credits.holds import Close, Closed, Hold, HoldState
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.definitions import build_defs
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.resources import CreditsResource
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.database import engine_for
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.world import World

OPS = {
    "datasets": "dataset_setup",
    "documents": "document_extract",
    "processing_jobs": "document_plan",
    "document_embeddings": "document_embed",
}
RESULTS = {
    "datasets": "SELECT count(*) FROM pipeline.datasets",
    "documents": "SELECT count(*) FROM pipeline.generations",
    "processing_jobs": "SELECT count(*) FROM pipeline.chunks",
    "document_embeddings": "SELECT count(*) FROM documents WHERE content IS NOT NULL",
}
"""What each op leaves behind, and must not leave before it is paid for."""


class Watched(Ledger):
    """The real ledger, that notes what it was asked and what the op had done by then; and that can refuse one op."""

    world: World
    refused: str
    seen: list[tuple[str, str, int]]

    def reserve(self, holds: list[Hold], *, leaving: int = 0) -> dict[str, HoldState]:  # type: ignore[override]
        self._note("reserve", holds)
        if any(h.op == self.refused for h in holds):
            return {h.id: HoldState.INSUFFICIENT for h in holds}
        return super().reserve(holds, leaving=leaving)

    def close(self, closes: list[Close]) -> dict[str, Closed]:  # type: ignore[override]
        self._note("settle", [c.hold for c in closes])
        return super().close(closes)

    def _note(self, what: str, holds: list[Hold]) -> None:
        for op in {h.op for h in holds}:
            asset = next(name for name, value in OPS.items() if value == op)
            self.seen.append((what, asset, self.world.rows(RESULTS[asset])[0][0]))


class WatchedCredits(CreditsResource):
    """Vends the watched ledger."""

    def ledger(self) -> Ledger:
        return WATCHED[0]

    def billing(self, fltr: Engine) -> Billing:
        return Billing(fltr, WATCHED[0], Settings().prices, True)


WATCHED: list[Watched] = []


@pytest.fixture
def paid_world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Every step has a price."""
    for price in ("DATASET_SETUP", "EXTRACT", "PLAN", "EMBED"):
        monkeypatch.setenv(f"FLTR_PRICES__{price}", "1")
    return world


def run(instance: dg.DagsterInstance, world: World, dataset: Dataset, refused: str = "") -> list[tuple[str, str, int]]:
    ledger = Watched(engine_for(Settings().endpoints.auth_database_url))
    for name, value in {"world": world, "refused": refused, "seen": []}.items():
        object.__setattr__(ledger, name, value)
    WATCHED[:] = [ledger]
    instance.add_dynamic_partitions(str(DATASET_PARTITIONS.name), [dataset.id])
    job = build_defs({"credits": WatchedCredits()}).resolve_job_def("ingest")
    assert job.execute_in_process(instance=instance, partition_key=dataset.id).success
    return ledger.seen


def test_every_op_reserves_before_its_result_and_settles_after_it(
    paid_world: World, instance: dg.DagsterInstance
) -> None:
    payer = paid_world.user(credits=10)
    dataset = paid_world.dataset(payer)
    paid_world.upload(dataset, {"a.txt": b"One document."})

    seen = run(instance, paid_world, dataset)

    # The collection is there when the set-up is settled; nothing is done in a dataset before that is paid.
    expected = [("reserve", "datasets", 0), ("settle", "datasets", 0)]
    expected += [("reserve", "documents", 0), ("settle", "documents", 1)]
    expected += [("reserve", "processing_jobs", 0), ("settle", "processing_jobs", 1)]
    # Embedding is settled before it is published: nobody sees a document that is not paid for.
    expected += [("reserve", "document_embeddings", 0), ("settle", "document_embeddings", 0)]
    assert seen == expected
    rows = paid_world.auth_rows(
        "SELECT operation, transaction_metadata->>'kind', amount FROM credit_transactions"
        " WHERE type = 'usage' ORDER BY 1, 3"
    )
    assert rows == [
        (op, kind, amount) for op in sorted(OPS.values()) for kind, amount in (("reserve", -1), ("close", 0))
    ]
    assert paid_world.statement(payer).available == 6


@pytest.mark.parametrize("asset", OPS)
def test_an_op_that_may_not_reserve_does_nothing(paid_world: World, instance: dg.DagsterInstance, asset: str) -> None:
    payer = paid_world.user(credits=10)
    dataset = paid_world.dataset(payer)
    paid_world.upload(dataset, {"a.txt": b"One document."})

    seen = run(instance, paid_world, dataset, refused=OPS[asset])

    assert ("reserve", asset, 0) in seen
    assert not [s for s in seen if s[0] == "settle" and s[1] == asset]
    assert paid_world.rows(RESULTS[asset])[0][0] == 0
    assert paid_world.statuses(dataset) == {"a.txt": "awaiting_credits"}
    statement = paid_world.statement(payer)
    assert statement.held == 0
    assert statement.charged == list(OPS).index(asset)
