"""Documents that end whoever works on them: only they are to blame, and not for ever.

Real processes that die of SIGKILL, as of the kernel's, with a batch in hand.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest

from fltr_pipeline.errors import DocumentError, TimeLimit
from fltr_pipeline.models import Chunk, ReprocessMode, Stage
from fltr_pipeline.pipeline import plan
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.reprocess import datasets_to_backfill, requeue
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.text.chunk import chunk_text
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline.text.parse.pool import ParserPool
from fltr_pipeline_tests.world import World

POISON = b"This text is POISON to its workers."
INNOCENTS = {f"{n}.txt": f"Innocent text number {n}, of a few words.".encode() for n in range(4)}
DEADLINE = 120.0


@pytest.fixture(autouse=True)
def _without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        EmbeddingModel, "encode", lambda self, texts: [[1.0] + [0.0] * (self.dimension - 1)] * len(texts)
    )


def plan_and_die(world: World, dataset: Dataset) -> None:
    """A worker's process: plans until it meets the poison."""

    def deadly(text: str, *arguments: Any, **named: Any) -> Iterator[Chunk]:
        if "POISON" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from chunk_text(text, *arguments, **named)

    setattr(plan, "chunk_text", deadly)  # noqa: B010 - not a name that the module exports
    world.stage(Plan(world.services), dataset)
    world.close()


def dies_of(world: World, dataset: Dataset) -> int | None:
    """The exit code of a worker on what waits to be planned; its leases and all waits then run out."""
    worker = get_context("spawn").Process(target=plan_and_die, args=(replace(world, _opened=[]), dataset))
    worker.start()
    worker.join(DEADLINE)
    time_passes(world)
    return worker.exitcode


def time_passes(world: World) -> None:
    world.change(
        "UPDATE pipeline.documents SET lease_until = now() - interval '1 s', retry_at = NULL"
        " WHERE lease_until IS NOT NULL"
    )


def failures(world: World) -> dict[str, str]:
    """filename → code."""
    query = (
        "SELECT d.filename, p.error_code FROM documents d JOIN pipeline.documents p ON p.document_id = d.id::text"
        " WHERE d.status = 'failed'"
    )
    return dict(world.rows(query))


def test_of_a_batch_whose_workers_die_the_poison_alone_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTR_MAX_ATTEMPTS", "2")
    payer = world.user(credits=50)
    dataset = world.dataset(payer)
    world.upload(dataset, INNOCENTS | {"poison.txt": POISON})
    world.extract(dataset)
    assert [dies_of(world, dataset) for _ in range(2)] == [-signal.SIGKILL] * 2, "with the batch in hand, then alone"
    world.process(dataset)
    assert world.statuses(dataset) == dict.fromkeys(INNOCENTS, "ready") | {"poison.txt": "failed"}
    assert failures(world) == {"poison.txt": "gave_up"}
    jobs = "SELECT d.filename, j.status FROM documents d JOIN processing_jobs j ON j.document_id = d.id ORDER BY 1, 2"
    expected = [(name, status) for name in INNOCENTS for status in ("completed", "failed")]
    assert world.rows(jobs) == [*expected, *[("poison.txt", "failed")] * 3], "one per attempt"
    statement = world.statement(payer)
    assert (statement.charged, statement.held) == (2 * len(INNOCENTS), 0), "what failed through our fault is free"
    assert compare(world.services, dataset.id).none


def give_up(world: World, dataset: Dataset) -> None:
    """As many workers die at the dataset's documents as may."""
    for n in range(world.services.settings.max_attempts):
        with transaction(world.services.fltr) as tx:
            taken = claims.claim(
                tx, dataset_id=dataset.id, stage=Stage.PLAN, run_id=f"dead {n}", limit=9, lease_seconds=60
            )
        assert len(taken) == 1
        time_passes(world)
    world.stage(Plan(world.services), dataset)


def test_the_same_bytes_are_not_tried_again_by_whatever_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = world.user(credits=50)
    dataset, another = world.dataset(payer), world.dataset(payer, "another")
    world.upload(another, {"twin.txt": POISON})
    world.extract(another)
    world.upload(dataset, {"poison.txt": POISON})
    world.extract(dataset)
    give_up(world, dataset)
    assert failures(world) == {"poison.txt": "gave_up"}
    world.process(another)
    assert failures(world) == {"poison.txt": "gave_up", "twin.txt": "quarantined"}, "at the next stage, too"
    requeue(world.services, dataset.id, ReprocessMode.stale, charge=False, retryable_only=True)  # as each night
    world.process(dataset)
    with monkeypatch.context() as patch:
        patch.setattr(ParserPool, "_outcome", lambda *_: pytest.fail("it was parsed"))
        world.upload(dataset, {"copy.txt": POISON})
        world.upload(another, {"twin.txt": POISON})
        world.process(dataset)
        _, extracted, *_ = world.process(another)
    assert failures(world) == dict.fromkeys(("poison.txt", "twin.txt", "copy.txt"), "quarantined")
    (failure,) = extracted.failures
    assert "same bytes failed 5 times" in failure.message
    assert "poison.txt" not in failure.message, "it may be somebody else's"
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (0, 0, 50)


def test_other_bytes_another_configuration_or_a_person_let_it_in_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user(credits=50))
    world.upload(dataset, {"a.txt": POISON})
    world.extract(dataset)
    give_up(world, dataset)
    world.upload(dataset, {"b.txt": POISON, "c.txt": POISON})
    world.process(dataset)
    assert failures(world) == {"a.txt": "gave_up", "b.txt": "quarantined", "c.txt": "quarantined"}
    world.upload(dataset, {"b.txt": POISON + b" In other bytes."})
    world.process(dataset)
    assert world.statuses(dataset)["b.txt"] == "ready"
    with monkeypatch.context() as patch:
        patch.setenv("FLTR_PARSE_SECONDS", "60")
        del world.services
        world.upload(dataset, {"c.txt": POISON})
        world.process(dataset)
        assert world.statuses(dataset)["c.txt"] == "ready"
    del world.services
    assert failures(world) == {"a.txt": "gave_up"}
    world.process(dataset, ReprocessMode.failed)
    assert failures(world) == {}
    assert set(world.statuses(dataset).values()) == {"ready"}


def test_a_file_that_ends_its_parser_twice_is_not_parsed_a_third_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = world.user(credits=50)
    dataset = world.dataset(payer)
    parsed = []

    def late(_: ParserPool, filename: str, data: bytes, on_page: object) -> DocumentError:
        parsed.append(filename)
        return TimeLimit(f"{filename}: parsing took longer than a moment")

    monkeypatch.setattr(ParserPool, "_outcome", late)
    for _ in range(3):
        world.upload(dataset, {"slow.pdf": b"%PDF-1.7 slow"})
        world.process(dataset)
    assert parsed == ["slow.pdf"] * 2
    assert failures(world) == {"slow.pdf": "quarantined"}
    assert world.statement(payer).available == 50


def test_failures_of_its_parser_with_successes_between_are_not_the_files_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user(credits=50))
    outcome = ParserPool._outcome

    def late_with_some(pool: ParserPool, filename: str, data: bytes, on_page: Any) -> Any:
        return TimeLimit(f"{filename}: late") if "late" in filename else outcome(pool, filename, data, on_page)

    monkeypatch.setattr(ParserPool, "_outcome", late_with_some)
    for name in ("late in January.txt", "a.txt", "late in June.txt", "b.txt"):
        world.upload(dataset, {name: POISON})
        world.process(dataset)
    assert failures(world) == {"late in January.txt": "time_limit", "late in June.txt": "time_limit"}
    assert world.rows("SELECT count(*) FROM pipeline.quarantine") == [(0,)]


def test_a_good_version_stays_when_the_new_one_is_poison(world: World) -> None:
    dataset = world.dataset(world.user(credits=50))
    world.upload(dataset, {"a.txt": b"A good text."})
    world.process(dataset)
    world.upload(dataset, {"a.txt": POISON})
    world.extract(dataset)
    give_up(world, dataset)
    world.upload(dataset, {"a.txt": POISON})
    world.process(dataset)
    assert world.rows("SELECT content FROM documents") == [("A good text.",)]
    assert compare(world.services, dataset.id).live == 1
    world.upload(dataset, {"a.txt": b"A good text."})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}


def test_a_stale_document_that_another_configuration_makes_poison_is_not_queued_night_after_night(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user(credits=50))
    world.upload(dataset, {"a.txt": POISON})
    world.process(dataset)
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "20")
    del world.services
    assert datasets_to_backfill(world.services) == [dataset.id]
    requeue(world.services, dataset.id, ReprocessMode.stale, charge=False)
    world.extract(dataset)
    give_up(world, dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert datasets_to_backfill(world.services) == []
    assert requeue(world.services, dataset.id, ReprocessMode.stale, charge=False) == 0
    world.process(dataset, ReprocessMode.all)
    assert datasets_to_backfill(world.services) == []
    assert world.rows("SELECT fingerprint FROM pipeline.generations") == [(world.services.fingerprint,)]
