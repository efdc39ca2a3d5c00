"""On 100,000 documents, no named query reads a whole table that grows with the documents.

Each public function is called as the pipeline calls it. Before PostgreSQL runs one of its statements, it is asked for
its plan, with the very parameters and, as for a driver that prepares what runs often, without them.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from sqlalchemy import Connection, text

from fltr_pipeline.models import Stage
from fltr_pipeline.stores.fltr import (
    charges,
    claims,
    datasets,
    deleted,
    expired,
    generations,
    jobs,
    leases,
    locks,
    manifest,
    moved,
    plans,
    quarantine,
    requeue,
    texts,
)
from fltr_pipeline_tests.large import Large, loaded
from fltr_pipeline_tests.large import plans as asked_for
from fltr_pipeline_tests.named_queries import CALLS, Call
from fltr_pipeline_tests.queries import Copy


@pytest.fixture(scope="module", params=["text", "uuid"])
def large(request: pytest.FixtureRequest, copy_of_fltr: Callable[[str], Copy]) -> Iterator[Large]:
    with copy_of_fltr(request.param) as fltr:
        yield loaded(fltr)


@pytest.mark.parametrize("name", CALLS)
def test_the_named_indexes_are_used_and_no_large_table_is_scanned(large: Large, name: str) -> None:
    indexes, call = CALLS[name]
    found = asked_for(large.fltr.engine, partial(call, large))
    assert indexes <= found.indexes
    assert found.scans == set()


def test_a_batch_of_ten_thousand_uploads_is_claimed_without_reading_or_sorting_them(large: Large) -> None:
    def claim(tx: Connection) -> None:
        taken = claims.claim(
            tx, dataset_id=large.afternoon, stage=Stage.EXTRACT, run_id="r", limit=100, lease_seconds=60
        )
        assert [c.filename for c in taken] == [f"{n}.txt" for n in range(109_999, 109_899, -1)]

    found = asked_for(large.fltr.engine, claim, about="SKIP LOCKED")
    assert found.indexes == {"documents_waiting_idx", "documents_suspect", "documents_pkey"}
    assert found.nodes == {"Index Scan", "LockRows", "Limit", "Result"}  # the last is a limit that is no constant


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_batch_of_ten_thousand_parked_is_claimed_without_reading_or_sorting_them(
    large: Large, analyzed: bool
) -> None:
    def claim(tx: Connection) -> None:
        parked = large.park(tx)
        if analyzed:  # else as it is when they were queued a moment ago
            tx.execute(text("ANALYZE pipeline.documents"))
        taken = claims.claim(
            tx, dataset_id=large.afternoon, stage=Stage.EXTRACT, run_id="r", limit=100, lease_seconds=60
        )
        assert [c.document_id for c in taken] == sorted(parked)[:100]

    found = asked_for(large.fltr.engine, claim, about="AS taken_over")
    assert found.indexes == {"documents_by_stage", "documents_suspect"}
    assert found.nodes == {"Index Scan", "LockRows", "Limit", "Result"}


@pytest.mark.parametrize("analyzed", [False, True])
def test_no_pass_reads_the_chunks_that_are_still_to_be_embedded(large: Large, analyzed: bool) -> None:
    def lost(tx: Connection) -> None:
        large.plan(tx)
        if analyzed:
            tx.execute(text("ANALYZE pipeline.chunks"))
        assert requeue.lost(tx, "", 100, tried_with="t") == []

    found = asked_for(large.fltr.engine, lost, about="DISTINCT")
    assert found.indexes >= {"chunks_lost", "documents_pkey"}
    assert found.indexes & {"chunks_pkey", "chunks_by_key"} == set()
    assert found.scans == set()


def test_what_is_left_of_a_dataset_is_counted_in_it_alone(large: Large) -> None:
    for stage in Stage:
        waiting = partial(datasets.waiting_at, dataset_id=large.dataset.id, stage=stage, unpaid=False)
        assert asked_for(large.fltr.engine, waiting).indexes == {"documents_waiting_idx", "documents_by_stage"}


def test_only_the_views_over_everything_read_everything(large: Large) -> None:
    whole: dict[str, Call] = {
        "counts_of_all": lambda _, tx: datasets.counts_of_all(tx),
        "backfill_candidates": lambda _, tx: requeue.backfill_candidates(
            tx, fingerprint="f", extractor="extractor-1", tried_with="t", retryable=["transient"]
        ),
        "payers_of_pots": lambda _, tx: charges.payers_of_pots(tx, [("user", "u")]),
    }
    for call in whole.values():
        assert asked_for(large.fltr.engine, partial(call, large)).scans & {"documents", "charges"}


def test_every_named_query_on_documents_has_a_plan_here() -> None:
    functions = {
        name
        for module in (
            claims,
            generations,
            texts,
            manifest,
            datasets,
            charges,
            expired,
            jobs,
            leases,
            locks,
            requeue,
            deleted,
            moved,
            plans,
            quarantine,
        )
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    within = {
        "insert_jobs",
        "start_jobs",
        "close_jobs",
        "lock_documents",
        "lock_free",
        "existing",
        "keyed",
        "retire_attempts",
    }  # called by the others
    # Datasets are few.
    small = {"get", "every", "create", "mark_set_up", "is_set_up", "gone_datasets", "forget_datasets"}
    small |= {"collections", "note_collection"}  # models are few, too
    whole = {"counts_of_all", "backfill_candidates", "payers_of_pots"}
    named = {word for name in CALLS for word in name.split()}
    assert functions - within - small - whole - named == set()
