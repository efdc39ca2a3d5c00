"""Two runs on one dataset share its work, at each stage, and nothing is done twice."""

import os
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest

from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.setup import ground, set_up
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests.world import World

DOCUMENTS = 60 if os.environ.get("FLTR_FAULTS") == "long" else 24
RUNS = 2
DEADLINE = 180.0


def run(world: World, dataset: Dataset, together: Any, told: Any) -> None:
    """A run's process: its share of each stage, begun at the same moment as the others'."""
    constant: Any = lambda self, texts: [[1.0] + [0.0] * (self.dimension - 1)] * len(texts)  # noqa: E731
    EmbeddingModel.encode = constant  # type: ignore[method-assign]
    worker = world.worker()
    with Extract(world.services) as extract:
        for work in (extract, Plan(world.services), Embed(world.services)):
            together.wait(DEADLINE)
            report = world.stage(work, dataset, worker, limit=DOCUMENTS // RUNS)
            told.put((work.stage.value, report.done, report.lost, report.counts["chunks_embedded"]))
    world.close()


def test_two_runs_do_every_document_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTR_BATCH_SIZE", "3")
    payer = world.user(credits=1000)
    dataset = world.dataset(payer)
    world.upload(dataset, {f"{n}.txt": f"Text number {n}, of a few words.".encode() for n in range(DOCUMENTS)})
    set_up(world.services, world.billing, world.worker(), ground(world.services, dataset.id))
    context = get_context("spawn")
    together, told = context.Barrier(RUNS), context.Queue()
    runs = [
        context.Process(target=run, args=(replace(world, _opened=[]), dataset, together, told)) for _ in range(RUNS)
    ]
    for process in runs:
        process.start()
    reports = sorted(told.get(timeout=DEADLINE) for _ in range(3 * RUNS))
    for process in runs:
        process.join(DEADLINE)
        assert process.exitcode == 0
    share = DOCUMENTS // RUNS
    expected = [(stage, share, 0, share if stage == "embed" else 0) for stage in ("embed", "extract", "plan")]
    assert reports == sorted(expected * RUNS)
    assert set(world.statuses(dataset).values()) == {"ready"}
    assert world.rows("SELECT status, count(*) FROM processing_jobs GROUP BY 1") == [("completed", DOCUMENTS)]
    assert world.rows("SELECT max(generation), max(attempts) FROM pipeline.documents") == [(1, 0)]
    statement = world.statement(payer)
    assert (statement.charged, statement.held) == (2 * DOCUMENTS, 0)
    drift = compare(world.services, dataset.id)
    assert (drift.none, drift.live) == (True, DOCUMENTS)
    assert expiry.sweep(world.services, world.billing, orphans=True).nothing
