"""A worker stopped (SIGSTOP) past its lease, and woken again: it changes nothing, and nothing is charged twice.

Real processes on a real document. The worker stops right before one step of its work; meanwhile the sweeper, and maybe
another worker, end what it had in hand, or nobody does.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

import psutil
import pytest

from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.billing import Billing, hold_of
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.setup import ground, set_up
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import charges, datasets, generations, texts
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests.world import World

LONG = os.environ.get("FLTR_FAULTS") == "long"
STEPS: dict[str, tuple[Any, str]] = {
    "before reserve": (Billing, "reserve"),
    "between charge and hold": (Ledger, "reserve"),
    "before settle": (Billing, "settle"),
    "between settlement and its record": (charges, "close_charges"),
}
OF_STAGE: dict[str, dict[str, tuple[Any, str]]] = {
    "extract": {"before the text is staged": (texts, "stage_texts")},
    "embed": {
        "before the vectors are inserted": (VectorStore, "insert"),
        "before they are read back": (VectorStore, "present"),
        "before the decision": (generations, "decide"),
    },
}
LAST = {"extract": (Extract, "finish"), "embed": (Embed, "finish")}
"""Handing on to the next stage, and publishing."""
SHORT = [
    ("extract", "before reserve"),
    ("extract", "before the text is staged"),
    ("embed", "before the vectors are inserted"),
    ("embed", "before they are read back"),
    ("embed", "before settle"),
    ("embed", "last"),
]
POINTS = [(stage, step) for stage in LAST for step in [*STEPS, *OF_STAGE[stage], "last"]] if LONG else SHORT
DEADLINE = 120.0
TEXT = b"The treaty of Westphalia ended the thirty years war in 1648."
NEWER = b"The treaty was signed in Osnabrueck and in Muenster."
TABLES = (
    "documents",
    "processing_jobs",
    "pipeline.documents",
    "pipeline.generations",
    "pipeline.chunks",
    "pipeline.charges",
)


def without_a_model(patch: Callable[[Any, str, Any], None]) -> None:
    """Vectors that cost nothing: what they are doesn't matter here."""
    patch(EmbeddingModel, "encode", lambda self, texts: [[1.0] + [0.0] * (self.dimension - 1)] * len(texts))


def work(world: World, dataset: Dataset, stage: str, step: str) -> None:
    """A worker's process: one document at one stage, stopped once, right before the step."""
    without_a_model(setattr)
    owner, name = LAST[stage] if step == "last" else (STEPS | OF_STAGE[stage])[step]
    go_on = getattr(owner, name)

    def stop(*arguments: Any, **named: Any) -> Any:
        setattr(owner, name, go_on)
        os.kill(os.getpid(), signal.SIGSTOP)
        return go_on(*arguments, **named)

    setattr(owner, name, stop)
    if stage == "extract":
        with Extract(world.services) as extract:
            world.stage(extract, dataset, limit=1)
    else:
        world.stage(Embed(world.services), dataset, limit=1)
    world.close()


@contextmanager
def stopped(world: World, dataset: Dataset, stage: str, step: str) -> Iterator[BaseProcess]:
    worker = get_context("spawn").Process(target=work, args=(replace(world, _opened=[]), dataset, stage, step))
    worker.start()
    try:
        deadline, process = time.monotonic() + DEADLINE, psutil.Process(worker.pid)
        while process.status() != psutil.STATUS_STOPPED:
            assert worker.is_alive(), "it ended without coming to that step"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield worker
    finally:
        worker.kill()
        worker.join()


def wake(worker: BaseProcess) -> None:
    """Let it go on, and end by itself."""
    os.kill(worker.pid or 0, signal.SIGCONT)
    worker.join(DEADLINE)
    assert worker.exitcode == 0


def uploaded(world: World, stage: str) -> Dataset:
    """A document that waits at the stage, in a dataset that is set up."""
    dataset = world.dataset(world.user(credits=20))
    world.upload(dataset, {"a.txt": TEXT})
    set_up(world.services, world.billing, world.worker(), ground(world.services, dataset.id))
    if stage == "embed":
        world.extract(dataset)
        world.stage(Plan(world.services), dataset)
    return dataset


def lease_runs_out(world: World) -> None:
    world.change(
        "UPDATE pipeline.documents SET lease_until = now() - interval '1 s', retry_at = NULL"
        " WHERE lease_until IS NOT NULL"
    )


def everything(world: World) -> dict[str, list[str]]:
    """All rows that a worker could change, in both databases."""
    found = {table: world.rows(f"SELECT t::text FROM {table} t ORDER BY 1") for table in TABLES}
    for table in ("credit_transactions", "user_credits"):
        found[table] = world.auth_rows(f"SELECT t::text FROM {table} t ORDER BY 1")
    return {table: [row for (row,) in rows] for table, rows in found.items()}


def after_a_sweep(world: World, dataset: Dataset) -> dict[str, list[str]]:
    """All rows, and the keys that Milvus holds once what is named for the sweep is swept."""
    sweep(world.services, dataset.id)
    return everything(world) | {"vectors": sorted(world.services.vectors.keys(dataset.id))}


def done_and_paid_once(world: World, dataset: Dataset, *, ended: frozenset[str] = frozenset({"settled"})) -> None:
    """Searchable, for one credit of extraction and one of embedding; nothing is held, and no sweep finds anything."""
    assert world.statuses(dataset) == {"a.txt": "ready"}
    payer = world.services.ledger.payer(dataset.user_id)
    assert payer is not None
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (2, 0, 18)
    assert world.auth_rows("SELECT sum(amount) FROM credit_transactions") == [(18,)]
    assert {state for (state,) in world.rows("SELECT state FROM pipeline.charges WHERE amount > 0")} == ended
    assert expiry.sweep(world.services, world.billing, orphans=True).nothing
    assert compare(world.services, dataset.id).none


@pytest.mark.parametrize(("stage", "step"), POINTS)
def test_a_worker_that_wakes_after_others_finished_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, stage: str, step: str
) -> None:
    without_a_model(monkeypatch.setattr)
    dataset = uploaded(world, stage)
    with stopped(world, dataset, stage, step) as worker:
        lease_runs_out(world)
        assert expiry.sweep(world.services, world.billing).documents == 1
        world.process(dataset)
        done_and_paid_once(world, dataset)
        before = after_a_sweep(world, dataset)
        wake(worker)
    assert after_a_sweep(world, dataset) == before
    done_and_paid_once(world, dataset)


@pytest.mark.parametrize(("stage", "step"), POINTS if LONG else [("extract", "between charge and hold")])
def test_a_worker_that_wakes_after_a_sweep_leaves_the_document_to_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch, stage: str, step: str
) -> None:
    without_a_model(monkeypatch.setattr)
    dataset = uploaded(world, stage)
    with stopped(world, dataset, stage, step) as worker:
        lease_runs_out(world)
        assert expiry.sweep(world.services, world.billing).documents == 1
        before = everything(world)
        wake(worker)
    assert everything(world) == before
    world.process(dataset)
    done_and_paid_once(world, dataset)


@pytest.mark.parametrize(("stage", "step"), POINTS if LONG else [("embed", "before reserve")])
def test_a_slow_worker_that_nobody_replaced_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, stage: str, step: str
) -> None:
    without_a_model(monkeypatch.setattr)
    dataset = uploaded(world, stage)
    with stopped(world, dataset, stage, step) as worker:
        lease_runs_out(world)
        wake(worker)
    assert world.rows("SELECT stage FROM pipeline.documents") == [("plan" if stage == "extract" else None,)]
    world.process(dataset)
    done_and_paid_once(world, dataset)


@pytest.mark.parametrize("stage", LAST)
@pytest.mark.parametrize("step", ["between charge and hold", "before settle"])
def test_a_slow_worker_whose_hold_expired_holds_again_before_it_publishes(
    world: World, monkeypatch: pytest.MonkeyPatch, stage: str, step: str
) -> None:
    without_a_model(monkeypatch.setattr)
    dataset = uploaded(world, stage)
    with stopped(world, dataset, stage, step) as worker:
        with transaction(world.services.fltr) as tx:
            (document,) = world.rows("SELECT document_id, generation FROM pipeline.documents")
            held = [hold_of(c) for c in charges.charges_of(tx, [document]) if c.state == "open" and c.amount]
        (ended,) = world.services.ledger.void(held, reason="expired").values()
        assert ended.charged == 0
        wake(worker)
    assert world.rows("SELECT stage FROM pipeline.documents") == [("plan" if stage == "extract" else None,)]
    world.process(dataset)
    done_and_paid_once(world, dataset)
    sequences = world.rows("SELECT sequence FROM pipeline.charges WHERE op = %s", f"document_{stage}")
    assert sequences == [(2,)]


@pytest.mark.parametrize("step", ["before the text is staged", "before settle"])
def test_a_worker_that_wakes_after_its_document_was_deleted_and_came_back_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    without_a_model(monkeypatch.setattr)
    dataset = uploaded(world, "extract")
    ((document,),) = world.rows("SELECT id FROM documents")
    with stopped(world, dataset, "extract", step) as worker:
        lease_runs_out(world)
        world.change("DELETE FROM documents")
        world.sweep_all(list_keys=False)
        assert world.rows("SELECT count(*) FROM pipeline.documents") == [(0,)]
        world.services.blobs.put(dataset.id, document, "a.txt", NEWER)
        with transaction(world.services.fltr) as tx:
            datasets.upload(tx, dataset.id, [(document, "a.txt")])
        world.extract(dataset)
        before = everything(world)
        wake(worker)
    assert everything(world) == before
    world.process(dataset)
    assert world.rows("SELECT content FROM documents") == [(NEWER.decode(),)]
    done_and_paid_once(world, dataset, ended=frozenset({"settled", "released"}))
