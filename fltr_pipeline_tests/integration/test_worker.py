"""A worker's leases live as long as its work gets on."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from fltr_pipeline.errors import SchemaDrift, StoreUnavailable
from fltr_pipeline.pipeline import embed, worker
from fltr_pipeline.pipeline.worker import Worker, progressed
from fltr_pipeline.stores.fltr import leases
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests.queries import Fltr
from fltr_pipeline_tests.world import World

DEADLINE = 60.0


def test_leases_are_renewed_while_work_gets_on_and_run_out_while_it_does_not(
    fltr: Fltr, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    fltr.claim(dataset, run="mine", lease=1)
    stalled = True
    monkeypatch.setattr(worker._Progress, "idle", lambda _: 100.0 if stalled else 0.0)

    def until(condition: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not fltr.state(document, condition)[0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with Worker(fltr.engine, "mine", lease_seconds=1, stall_seconds=99).heartbeat():
        until("lease_until < now()")
        stalled = False
        until("lease_until > now()")  # nobody had come for it
        stalled = True
        until("lease_until < now()")
        (claim,) = fltr.claim(dataset, run="another", lease=3600)
        stalled = False
        until("lease_until > now() + interval '30 min'")
    assert claim.attempts == 1
    assert fltr.state(document, "run_id, fence") == ("another", claim.fence)


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), SchemaDrift("no such column"), RuntimeError("a bug")])
def test_a_beat_that_is_missed_for_whatever_reason_is_not_the_last(
    fltr: Fltr, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    beat, beats = leases.heartbeat, threading.Semaphore(0)
    missed = [error]

    def heartbeat(*arguments: Any, **named: Any) -> None:
        if missed:
            raise missed.pop()
        beat(*arguments, **named)
        beats.release()

    monkeypatch.setattr(leases, "heartbeat", heartbeat)
    with Worker(fltr.engine, "mine", lease_seconds=0.3).heartbeat():
        assert beats.acquire(timeout=DEADLINE)


@pytest.mark.parametrize(("seconds", "then"), [(0, 16), (1_000_000, 512)])
def test_a_model_is_given_what_it_does_in_a_few_seconds_so_that_a_slow_one_gets_on_too(
    world: World, monkeypatch: pytest.MonkeyPatch, seconds: int, then: int
) -> None:
    monkeypatch.setattr(embed, "_GROUP_SECONDS", seconds)
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "20")
    given: list[int] = []

    def encode(model: EmbeddingModel, texts: Sequence[str]) -> list[list[float]]:
        given.append(len(texts))
        return [[1.0] + [0.0] * (model.dimension - 1)] * len(texts)

    monkeypatch.setattr(EmbeddingModel, "encode", encode)
    dataset = world.dataset(world.user())
    world.upload(dataset, {"a.txt": b"\n\n".join(b"In the year %d there was a war." % n for n in range(1600, 1660))})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    first, *slices, _ = given
    assert first == 16
    assert set(slices) <= {then}
    assert (len(given) > 2) == (then == 16)


def test_progress_is_counted_from_the_last_thing_finished(monkeypatch: pytest.MonkeyPatch, fltr: Fltr) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progressed()  # outside of any worker: of no use, of no harm
    with Worker(fltr.engine, "mine", lease_seconds=3600).heartbeat():
        progress = worker._PROGRESS.get()
        assert progress
        now += 50
        assert progress.idle() == 50
        progressed()
        now += 7
        assert progress.idle() == 7
    assert worker._PROGRESS.get() is None
