"""A blob that its store has and does not give (403, archived, a bad sector) is one document's trouble alone."""

from collections.abc import Callable
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from fltr_pipeline.errors import Inaccessible, StoreUnavailable
from fltr_pipeline.models import ReprocessMode, Stage
from fltr_pipeline.pipeline.reprocess import datasets_to_backfill, requeue
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests.world import BREAD, TREATY, World

OF_FILE, OF_FOLDER = ("cat_file", "_open"), ("ls",)
"""What a file system is asked for a file's bytes, and for what lies in a folder."""


@pytest.fixture(autouse=True)
def _without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        EmbeddingModel, "encode", lambda self, texts: [[1.0] + [0.0] * (self.dimension - 1)] * len(texts)
    )


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes the file system refuse these questions about paths with one of these words in them."""
    words: set[str] = set()
    questions: set[str] = set()

    def guarded(name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def answer(fs: object, path: str, *arguments: Any, **named: Any) -> Any:
            if name in questions and any(word in path for word in words):
                raise PermissionError(13, "Permission denied", path)
            return ask(fs, path, *arguments, **named)

        return answer

    for name in OF_FILE + OF_FOLDER:
        monkeypatch.setattr(LocalFileSystem, name, guarded(name, getattr(LocalFileSystem, name)))

    def refuse(*of: str, asked: tuple[str, ...] = OF_FILE) -> None:
        words.clear()
        questions.clear()
        words.update(of)
        questions.update(asked)

    return refuse


def state(world: World, document_id: str) -> tuple[Any, ...]:
    query = "SELECT stage, error_code, retries FROM pipeline.documents WHERE document_id = %s"
    return world.rows(query, document_id)[0]


def wait_is_over(world: World) -> None:
    world.change("UPDATE pipeline.documents SET retry_at = NULL")


def paid(world: World, dataset: Dataset) -> tuple[int, int]:
    payer = world.services.ledger.payer(dataset.user_id)
    assert payer is not None
    statement = world.statement(payer)
    return statement.charged, statement.held


@pytest.mark.parametrize("asked", [OF_FILE, OF_FOLDER])
def test_the_others_of_its_batch_go_on_and_it_fails_at_last_by_itself(
    world: World, refuse: Callable[..., None], asked: tuple[str, ...]
) -> None:
    dataset = world.dataset(world.user(credits=50))
    ids = world.upload(dataset, {"a.txt": TREATY, "bad.txt": b"Refused.", "b.md": BREAD})
    refuse(ids["bad.txt"], asked=asked)
    _, extracted, *_ = world.process(dataset)
    assert (extracted.done, extracted.put_back, extracted.lost) == (2, 1, 0)
    assert world.statuses(dataset) == {"a.txt": "ready", "b.md": "ready", "bad.txt": "processing"}
    assert paid(world, dataset) == (4, 0), "nothing is held while it waits"
    waits = "SELECT extract(epoch FROM retry_at - error_at)::float FROM pipeline.documents WHERE stage IS NOT NULL"
    for tried in range(1, Inaccessible.tries):
        assert state(world, ids["bad.txt"]) == ("extract", "inaccessible", tried)
        ((waited,),) = world.rows(waits)
        assert 1 <= waited / min(600, 5 * 2 ** (tried - 1)) <= 1.5
        wait_is_over(world)
        report = world.extract(dataset)
    (failure,) = report.failures
    assert (failure.code, report.put_back, report.lost) == ("inaccessible", 0, 0)
    assert failure.message.startswith("bad.txt: ")
    assert "Permission denied" in failure.message
    assert "let FLTR_BLOB_URL's role read this file" in failure.message
    assert world.statuses(dataset)["bad.txt"] == "failed"
    assert paid(world, dataset) == (4, 0)

    assert datasets_to_backfill(world.services) == [dataset.id]
    refuse()
    requeue(world.services, dataset.id, ReprocessMode.stale, charge=False, retryable_only=True)  # as each night
    world.process(dataset)
    assert set(world.statuses(dataset).values()) == {"ready"}
    assert paid(world, dataset) == (6, 0)


def test_a_store_that_gives_nothing_at_all_fails_no_document_however_long_that_lasts(
    world: World, refuse: Callable[..., None]
) -> None:
    dataset = world.dataset(world.user(credits=50))
    ids = world.upload(dataset, {"a.txt": TREATY})
    for _ in range(Inaccessible.tries + 2):
        refuse(str(world.blobs), asked=OF_FILE + OF_FOLDER)
        with pytest.raises(StoreUnavailable):
            world.extract(dataset)
        wait_is_over(world)
    assert state(world, ids["a.txt"]) == ("extract", "transient", Inaccessible.tries + 2)
    refuse(ids["a.txt"])
    assert world.extract(dataset).put_back == 1
    assert state(world, ids["a.txt"]) == ("extract", "inaccessible", 1), "only tries at which the store answers count"
    refuse()
    wait_is_over(world)
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert paid(world, dataset) == (2, 0)


@pytest.mark.parametrize("asked", [OF_FILE, OF_FOLDER])
def test_what_is_given_at_last_costs_what_it_would_have_cost_at_once(
    world: World, refuse: Callable[..., None], asked: tuple[str, ...]
) -> None:
    dataset = world.dataset(world.user(credits=50))
    ids = world.upload(dataset, {"new.txt": TREATY, "edited.txt": BREAD})
    refuse(ids["new.txt"], asked=asked)
    world.process(dataset)
    world.upload(dataset, {"edited.txt": BREAD[::-1]})  # as long as what is live, so its digest is asked for
    refuse(*ids.values(), asked=asked)
    wait_is_over(world)
    assert world.extract(dataset).put_back == 2
    refuse()
    wait_is_over(world)
    world.process(dataset)
    assert set(world.statuses(dataset).values()) == {"ready"}
    assert paid(world, dataset) == (6, 0)
    amounts = world.rows("SELECT sum(charged) FROM pipeline.charges WHERE op = 'document_extract'")
    assert amounts == [(3,)]


def test_what_is_live_or_begun_waits_as_it_is_for_what_can_not_be_compared(
    world: World, refuse: Callable[..., None]
) -> None:
    dataset = world.dataset(world.user(credits=50))
    ids = world.upload(dataset, {"live.txt": TREATY})
    world.process(dataset)
    ids |= world.upload(dataset, {"begun.txt": BREAD})
    world.extract(dataset)
    world.upload(dataset, {"live.txt": TREATY, "begun.txt": BREAD})
    refuse(ids["live.txt"], ids["begun.txt"])
    before = world.rows("SELECT document_id, generation, text FROM pipeline.generations ORDER BY 1, 2")
    assert world.extract(dataset).put_back == 2
    assert world.rows("SELECT document_id, generation, text FROM pipeline.generations ORDER BY 1, 2") == before
    refuse()
    wait_is_over(world)
    _, extracted, *_ = world.process(dataset)
    assert extracted.counts["unchanged"] == 2
    assert world.statuses(dataset) == {"live.txt": "ready", "begun.txt": "ready"}
    assert paid(world, dataset) == (4, 0), "as one upload each"


def test_one_at_which_workers_died_is_given_up_though_nobody_can_take_its_digest(
    world: World, refuse: Callable[..., None]
) -> None:
    dataset = world.dataset(world.user(credits=50))
    ids = world.upload(dataset, {"bad.txt": TREATY})
    with transaction(world.services.fltr) as tx:
        assert claims.claim(tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id="d", limit=1, lease_seconds=60)
    most = world.services.settings.max_attempts
    world.change("UPDATE pipeline.documents SET attempts = %s, lease_until = NULL", most)
    refuse(str(world.blobs), asked=OF_FILE + OF_FOLDER)
    with pytest.raises(StoreUnavailable):
        world.extract(dataset)
    attempts = "SELECT attempts, lease_until FROM pipeline.documents"
    assert world.rows(attempts) == [(most, None)], "put back: nobody died"
    wait_is_over(world)
    refuse(ids["bad.txt"])
    report = world.extract(dataset)
    assert [f.code for f in report.failures] == ["gave_up"]
    assert world.rows("SELECT count(*) FROM pipeline.quarantine") == [(0,)]
