"""Datasets and uploads: what an uploader writes, and what the sensor, `status`, search and the schedules read."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from fltr_pipeline.models import Stage
from fltr_pipeline.stores.fltr import claims, datasets
from fltr_pipeline.stores.fltr.claims import Wait
from fltr_pipeline.stores.fltr.datasets import Awaiting, Backlog, Dataset, FailedDocument, Pace, WorkInFlight
from fltr_pipeline_tests.queries import Fltr, failed

UNKNOWN = str(uuid.uuid4())
NOBODY = Dataset(UNKNOWN, UNKNOWN, "nobody's")


def ask(fltr: Fltr, query: Any, *arguments: object, **named: object) -> Any:
    with fltr.transaction() as tx:
        return query(tx, *arguments, **named)


def waits(fltr: Fltr, dataset: Dataset, needed: Sequence[int], pot: str = "u") -> None:
    fltr.upload(dataset, *(f"{pot}{n}" for n in needed))
    claimed = fltr.claim(dataset, run="r")
    with fltr.transaction() as tx:
        claims.wait_for_credits(tx, [Wait(c, n, "user", pot) for c, n in zip(claimed, needed, strict=True)])


# --- datasets ---------------------------------------------------------------------------------------------------------


def test_a_dataset_is_found_by_id_by_name_and_among_all_oldest_first(fltr: Fltr) -> None:
    assert ask(fltr, datasets.every) == []
    one, two, other = fltr.dataset("same"), fltr.dataset("same"), fltr.dataset("other 'quoted' \N{SNOWMAN}")
    assert ask(fltr, datasets.get, two.id) == two
    assert ask(fltr, datasets.get, UNKNOWN) is None
    assert ask(fltr, datasets.named, "same") == [one, two]
    assert ask(fltr, datasets.named, other.name) == [other]
    assert ask(fltr, datasets.named, "") == []
    assert ask(fltr, datasets.every) == [one, two, other]


def test_a_dataset_is_created_once(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    row = fltr.one("SELECT user_id::text, name, description, created_at = updated_at FROM datasets")
    assert row == (dataset.user_id, dataset.name, "", True)
    with pytest.raises(IntegrityError, match="datasets_pkey"):
        ask(fltr, datasets.create, dataset)


def test_a_set_up_is_recorded_and_follows_a_change(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    ask(fltr, datasets.mark_set_up, dataset, "chunks")
    ask(fltr, datasets.mark_set_up, replace(dataset, user_id="new owner"), "chunks_2")
    query = "SELECT dataset_id, user_id, collection FROM pipeline.datasets"
    assert fltr.rows(query) == [(dataset.id, "new owner", "chunks_2")]
    assert ask(fltr, datasets.is_set_up, dataset.id) is True
    assert ask(fltr, datasets.is_set_up, UNKNOWN) is False


# --- uploads ----------------------------------------------------------------------------------------------------------


def test_an_upload_inserts_or_marks_as_uploaded_anew(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    ask(fltr, datasets.upload, dataset.id, [])
    (document,) = fltr.upload(dataset, "a")
    fltr.publish(dataset, "alpha")
    before = fltr.one("SELECT updated_at, created_at FROM documents")
    fltr.upload_anew(dataset, document)
    assert fltr.one("SELECT filename, content, status FROM documents") == ("a", "alpha", "uploaded")
    after = fltr.one("SELECT updated_at, created_at FROM documents")
    assert after[0] > before[0]
    assert after[1] == before[1]


def test_two_uploads_in_one_transaction_are_two_input_versions(fltr: Fltr) -> None:
    dataset, document = fltr.dataset(), str(uuid.uuid4())
    with fltr.transaction() as tx:
        datasets.upload(tx, dataset.id, [(document, "a")])
        datasets.upload(tx, dataset.id, [(document, "a")])
    assert fltr.one("SELECT updated_at > created_at FROM documents") == (True,)


def test_documents_are_found_by_filename_in_their_dataset_alone(fltr: Fltr) -> None:
    dataset, other = fltr.dataset(), fltr.dataset()
    a, b, _ = fltr.upload(dataset, "a", 'b {x}, "y"', "c")
    fltr.upload(other, "a")
    twins = fltr.upload(dataset, "twin", "twin")
    assert ask(fltr, datasets.find_documents, dataset.id, ["a", 'b {x}, "y"', "none"]) == {"a": a, 'b {x}, "y"': b}
    assert ask(fltr, datasets.find_documents, dataset.id, ["twin"]) == {"twin": min(twins)}
    assert ask(fltr, datasets.find_documents, dataset.id, []) == {}
    assert ask(fltr, datasets.find_documents, UNKNOWN, ["a"]) == {}


def test_names_of_datasets_and_documents_by_id(fltr: Fltr) -> None:
    dataset = fltr.dataset("books")
    (document,) = fltr.upload(dataset, "a.txt")
    found = ask(fltr, datasets.names_of, dataset_ids=[dataset.id, UNKNOWN], document_ids=[document, UNKNOWN])
    assert found == {dataset.id: "books", document: "a.txt"}
    assert ask(fltr, datasets.names_of, dataset_ids=[], document_ids=[]) == {}


def test_content_is_the_published_text(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    assert ask(fltr, datasets.content, document) is None
    fltr.publish(dataset, "alpha beta")
    assert ask(fltr, datasets.content, document) == "alpha beta"
    assert ask(fltr, datasets.content, UNKNOWN) is None


def test_a_dataset_is_searchable_once_a_document_is_published(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    assert ask(fltr, datasets.is_searchable, dataset.id) is False
    fltr.publish(dataset, "alpha")
    fltr.upload_anew(dataset, document)
    assert ask(fltr, datasets.is_searchable, dataset.id) is True
    assert ask(fltr, datasets.is_searchable, UNKNOWN) is False


# --- what the sensor reads --------------------------------------------------------------------------------------------


def test_the_backlog_is_what_any_worker_could_take_by_dataset(fltr: Fltr) -> None:
    assert ask(fltr, datasets.backlog) == []
    dataset, other, idle = sorted((fltr.dataset(), fltr.dataset(), fltr.dataset()), key=lambda d: d.id)
    fltr.upload(dataset, "parked", "held", "dead", "later")
    parked, held, dead, later = fltr.claim(dataset)
    fltr.advance([parked], Stage.PLAN)
    ask(fltr, claims.retry_later, [later], "no answer")
    fltr.change(
        "UPDATE pipeline.documents SET lease_until = now() - interval '1 s' WHERE document_id = :d", d=dead.document_id
    )
    fltr.upload(dataset, "new")
    fltr.upload(other, "first", "second")
    fltr.publish(idle, "alpha")
    waits(fltr, idle, [3])
    assert held.attempts == 0
    expected = [
        Backlog(dataset.id, dataset.user_id, 3, uploaded(fltr, "new")),
        Backlog(other.id, other.user_id, 2, uploaded(fltr, "first")),
    ]
    assert ask(fltr, datasets.backlog) == expected
    waits(fltr, dataset, [3])
    counts = [[ask(fltr, datasets.waiting_at, d.id, stage) for stage in Stage] for d in (dataset, other, idle)]
    assert counts == [[3, 1, 0], [2, 0, 0], [1, 0, 0]], "what awaits credits is offered once more to each run"
    assert [
        sum(ask(fltr, datasets.waiting_at, d.id, stage, unpaid=False) for stage in Stage)
        for d in (dataset, other, idle)
    ] == [3, 2, 0]


def uploaded(fltr: Fltr, filename: str) -> datetime:
    (at,) = fltr.one("SELECT updated_at::timestamptz FROM documents WHERE filename = :f", f=filename)
    assert isinstance(at, datetime)
    return at


def test_a_backlog_of_parked_documents_has_no_oldest_upload(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a")
    fltr.advance(fltr.claim(dataset), Stage.PLAN)
    found = ask(fltr, datasets.backlog)
    assert (found, found[0].name) == ([Backlog(dataset.id, dataset.user_id, 1, None)], dataset.name)


def test_a_deleted_dataset_has_no_backlog_and_awaits_nothing(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    waits(fltr, dataset, [3])
    fltr.upload(dataset, "a")
    fltr.change("DELETE FROM datasets")
    assert ask(fltr, datasets.backlog) == ask(fltr, datasets.awaiting) == []


def test_what_awaits_credits_by_dataset_and_pot_with_the_cheapest(fltr: Fltr) -> None:
    assert ask(fltr, datasets.awaiting) == []
    dataset, other = sorted((fltr.dataset(), fltr.dataset()), key=lambda d: d.id)
    waits(fltr, dataset, [5, 3, 9], pot="rich")
    waits(fltr, dataset, [2], pot="poor")
    waits(fltr, other, [7], pot="rich")
    found = ask(fltr, datasets.awaiting)
    assert sorted(found, key=lambda a: (a.dataset_id, a.pot_id)) == [
        Awaiting(dataset.id, dataset.user_id, "user", "poor", documents=1, least=2),
        Awaiting(dataset.id, dataset.user_id, "user", "rich", documents=3, least=3),
        Awaiting(other.id, other.user_id, "user", "rich", documents=1, least=7),
    ]
    assert len(fltr.claim(dataset, run="after the top-up")) == 4
    assert [(a.dataset_id, a.name) for a in ask(fltr, datasets.awaiting)] == [(other.id, other.name)]


# --- what `status` reads ----------------------------------------------------------------------------------------------


def test_work_in_flight_by_stage_in_their_order(fltr: Fltr) -> None:
    dataset, other = fltr.dataset(), fltr.dataset()
    fltr.upload(other, "x")
    fltr.claim(other)
    waits(fltr, dataset, [3, 3])
    fltr.upload(dataset, "working", "waiting", "retrying", "dead", "anew", "planning")
    _, waiting, retrying, dead, anew, planning = fltr.claim(dataset, run="r")
    fltr.advance([waiting], Stage.EXTRACT)
    fltr.advance([planning], Stage.PLAN)
    ask(fltr, claims.retry_later, [retrying], "no answer")
    fltr.change(
        "UPDATE pipeline.documents SET lease_until = now() - interval '1 s' WHERE document_id = :d", d=dead.document_id
    )
    fltr.upload_anew(dataset, anew.document_id)
    found = ask(fltr, datasets.in_flight, dataset.id)
    assert [w.stage for w in found] == ["extract", "plan"]
    assert found[1] == WorkInFlight("plan", working=0, waiting=1, retrying=0)
    assert found[0] == WorkInFlight("extract", working=1, waiting=2, retrying=1)
    assert ask(fltr, datasets.in_flight, UNKNOWN) == []


def ended(fltr: Fltr, dataset: Dataset, name: str, *, began: int, ended: int, status: str = "completed") -> None:
    """A job that began and ended that many seconds after noon."""
    (document,) = fltr.upload(dataset, name)
    fltr.change(
        "INSERT INTO processing_jobs SELECT (json_populate_record(NULL::processing_jobs, json_build_object("
        " 'id', CAST(:i AS text), 'document_id', CAST(:d AS text), 'status', CAST(:s AS text),"
        " 'created_at', CAST(:b AS text), 'updated_at', CAST(:e AS text)))).*",
        i=str(uuid.uuid4()), d=document, s=status, b=noon(began), e=noon(ended),
    )  # fmt: skip


def noon(seconds: int) -> str:
    return (datetime.fromisoformat("2026-01-01T12:00:00") + timedelta(seconds=seconds)).isoformat()


def test_the_pace_counts_what_ended_in_the_last_window(fltr: Fltr) -> None:
    dataset, other = fltr.dataset(), fltr.dataset()
    ended(fltr, dataset, "long ago", began=-9000, ended=-8000)
    ended(fltr, dataset, "waited for credits since yesterday", began=-90_000, ended=90)
    ended(fltr, dataset, "done", began=10, ended=60)
    ended(fltr, dataset, "failed", began=20, ended=100, status="failed")
    ended(fltr, dataset, "canceled", began=0, ended=99, status="canceled")
    ended(fltr, other, "elsewhere", began=0, ended=100)
    assert ask(fltr, datasets.pace, dataset.id, window=80) == Pace(documents=3, seconds=80.0)
    assert ask(fltr, datasets.pace, dataset.id, window=20) == Pace(documents=2, seconds=20.0)
    assert ask(fltr, datasets.pace, other.id, window=3600) == Pace(documents=1, seconds=100.0)
    assert ask(fltr, datasets.pace, UNKNOWN, window=60) is None


def test_what_ended_the_moment_it_began_has_no_pace(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    ended(fltr, dataset, "a", began=0, ended=0)
    assert ask(fltr, datasets.pace, dataset.id, window=60) is None


def test_counts_of_all_name_every_dataset_even_an_empty_one(fltr: Fltr) -> None:
    assert ask(fltr, datasets.counts_of_all) == []
    full, empty = fltr.dataset("full"), fltr.dataset("empty")
    failed(fltr, full, "bad")
    fltr.upload(full, "a", "b")
    counts = ask(fltr, datasets.counts_of_all)
    assert [(c.dataset, c.documents) for c in counts] == [(full, {"failed": 1, "uploaded": 2}), (empty, {})]


def test_the_status_of_a_dataset_adds_up_its_live_generations(fltr: Fltr) -> None:
    dataset, other = fltr.dataset(), fltr.dataset()
    fltr.upload(dataset, "a", "b")
    fltr.publish(dataset, "alpha beta gamma")
    failed(fltr, dataset, "z", "y", "x")
    fltr.upload(dataset, "waiting")
    fltr.upload(other, "elsewhere")
    fltr.publish(other, "alpha")
    status = ask(fltr, datasets.status, dataset, failures=2)
    assert status.dataset == dataset
    assert status.documents == {"failed": 3, "ready": 2, "uploaded": 1}
    assert (status.pages, status.chunks, status.tokens) == (2, 6, 12)
    assert status.seconds > 0
    assert [(f.filename, f.code, f.message) for f in status.failures] == [
        ("x", "corrupt", "x is bad"),
        ("y", "corrupt", "y is bad"),
    ]
    assert len(ask(fltr, datasets.status, dataset, failures=None).failures) == 3


def test_the_status_of_an_empty_or_unknown_dataset_is_empty(fltr: Fltr) -> None:
    for dataset in (fltr.dataset(), NOBODY):
        status = ask(fltr, datasets.status, dataset)
        assert (status.documents, status.pages, status.chunks, status.tokens) == ({}, 0, 0, 0)
        assert (status.seconds, status.failures) == (None, ())


def test_a_failure_that_another_writer_set_has_no_known_reason(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    fltr.change("UPDATE documents SET status = 'failed'")
    assert ask(fltr, datasets.status, dataset).failures == (FailedDocument(document, "a", "unknown", ""),)
