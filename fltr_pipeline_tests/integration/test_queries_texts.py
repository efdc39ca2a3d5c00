"""Staged texts: what an attempt read, what it takes over from the live version, and an input that is live already."""

import threading
import uuid
from hashlib import sha256

import pytest
from sqlalchemy import text

from fltr_pipeline.stores.fltr import generations, texts
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.fltr.texts import InlineText, LiveSource
from fltr_pipeline_tests.moments import wait_for
from fltr_pipeline_tests.queries import FINGERPRINT, Fltr, claimed, published, staged, steal, words

UNKNOWN = str(uuid.uuid4())


# --- texts ------------------------------------------------------------------------------------------------------------


def test_a_staged_text_is_read_back_and_content_stays_as_it_was(fltr: Fltr) -> None:
    _, (claim, other) = claimed(fltr, "a", "b")
    content = "one\ftwo \N{SNOWMAN}"
    assert fltr.stage_text(claim, content, pages=2) == {claim.document_id}
    with fltr.transaction() as tx:
        assert texts.staged_texts(tx, [claim, other]) == {claim.document_id: content}
        assert texts.staged_sizes(tx, [claim, other]) == {claim.document_id: len(content.encode())}
        assert texts.staged_texts(tx, []) == {}
        assert texts.staged_sizes(tx, []) == {}
    columns = "state, kind, engine, source_bytes, pages, blank_pages, fingerprint, chunks"
    assert fltr.one(f"SELECT {columns} FROM pipeline.generations") == ("staged", "text", "utf-8", 9, 2, [], None, None)
    assert fltr.rows("SELECT content FROM documents WHERE content IS NOT NULL") == []


def test_staging_again_replaces_and_a_lost_fence_stages_nothing(fltr: Fltr) -> None:
    _, (claim, lost) = claimed(fltr, "a", "b")
    fltr.stage_text(claim, "old")
    steal(fltr, lost)
    with fltr.transaction() as tx:
        assert texts.stage_texts(tx, []) == set()
        assert texts.stage_texts(tx, [staged(claim, "new"), staged(lost, "x")]) == {claim.document_id}
    assert fltr.rows("SELECT text FROM pipeline.generations") == [("new",)]


def test_live_sources_are_those_of_published_documents(fltr: Fltr) -> None:
    dataset, claim = published(fltr, "alpha beta")
    (waiting,) = fltr.upload(dataset, "b")
    with fltr.transaction() as tx:
        assert texts.live_sources(tx, []) == {}
        live = texts.live_sources(tx, [claim.document_id, waiting, UNKNOWN])
    digest = sha256(b"alpha beta").hexdigest()
    one = LiveSource("extractor-1", digest, 10, 1, FINGERPRINT, lost=False, stands=True, is_redo=True)
    assert live == {claim.document_id: one}


def test_a_live_source_without_all_of_its_vectors_says_so(fltr: Fltr) -> None:
    _, claim = published(fltr, "alpha beta")
    fltr.change("UPDATE pipeline.chunks SET key = NULL WHERE ordinal = 1")
    with fltr.transaction() as tx:
        assert texts.live_sources(tx, [claim.document_id])[claim.document_id].lost


@pytest.mark.parametrize("case", ["uploaded", "redo", "free", "same configuration", "replaced"])
def test_what_was_live_under_another_configuration_is_told_of_uploads_that_are_paid_for(fltr: Fltr, case: str) -> None:
    dataset, claim = published(fltr, "alpha beta")
    if case == "redo":
        fltr.change("UPDATE pipeline.documents SET stage = 'extract'")
    else:
        fltr.upload_anew(dataset, claim.document_id)
    fltr.claim(dataset)
    if case == "free":
        fltr.change("UPDATE pipeline.documents SET billable = false")
    if case == "replaced":
        fltr.change("UPDATE documents SET content = 'gamma'")
    fingerprint = FINGERPRINT if case == "same configuration" else "config-2"
    with fltr.transaction() as tx:
        former = texts.former_texts(tx, [claim.document_id, UNKNOWN], fingerprint)
    assert former == ({claim.document_id: "alpha beta"} if case == "uploaded" else {})


def test_inline_text_is_what_was_uploaded_and_not_what_was_published_of_a_file(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    full, empty = fltr.upload(dataset, "full", "empty")
    fltr.change("UPDATE documents SET content = :c WHERE id = :d", c="a\N{SNOWMAN}", d=full)
    _, claim = published(fltr, "alpha beta")

    def inline() -> dict[str, InlineText]:
        with fltr.transaction() as tx:
            assert texts.inline_texts(tx, []) == {}
            return texts.inline_texts(tx, [full, empty, UNKNOWN, claim.document_id])

    uploaded = {full: InlineText(4, is_live=False, of_file=False, stands=False)}
    redo = InlineText(10, is_live=True, of_file=True, stands=False)
    assert inline() == uploaded | {claim.document_id: redo}
    fltr.change("UPDATE documents SET status = 'processing'")
    assert inline() == uploaded
    fltr.change("DELETE FROM pipeline.generations")
    assert inline() == uploaded
    fltr.change("UPDATE pipeline.documents SET published_inline = true")
    assert inline()[claim.document_id] == InlineText(10, is_live=True, of_file=False, stands=False)
    fltr.change("UPDATE documents SET status = 'ready'")
    assert inline()[claim.document_id] == InlineText(10, is_live=True, of_file=False, stands=True)
    fltr.change("UPDATE documents SET content = 'gamma' WHERE id = :d", d=claim.document_id)
    assert inline()[claim.document_id] == InlineText(5, is_live=False, of_file=False, stands=False)


def test_unchanged_bytes_take_over_the_live_text(fltr: Fltr) -> None:
    dataset, first = published(fltr, "alpha beta")
    fltr.upload_anew(dataset, first.document_id)
    (again,) = fltr.claim(dataset)
    with fltr.transaction() as tx:
        assert texts.reuse_texts(tx, [], "extractor-2") == set()
        assert texts.reuse_texts(tx, [again], "extractor-2") == {again.document_id}
        assert texts.reuse_texts(tx, [again], "extractor-2") == {again.document_id}
        assert texts.staged_texts(tx, [again]) == {again.document_id: "alpha beta"}
        assert texts.live_sources(tx, [again.document_id])[again.document_id].extractor == "extractor-1"
        assert texts.staged_sources(tx, [again])[again.document_id].extractor == "extractor-2"


@pytest.mark.parametrize("how", ["read", "reused"])
def test_nobody_takes_a_document_over_while_its_text_is_staged(fltr: Fltr, how: str) -> None:
    """Whoever does works on the same generation, and would find a text there that it knows nothing of."""
    dataset, claim = again(fltr)
    fltr.stage_text(claim, "what an earlier worker read")
    fltr.let_leases_run_out()
    held: set[str] = set()

    def stage() -> None:
        with fltr.transaction() as tx:
            staging = [staged(claim, "alpha beta")]
            held.update(texts.stage_texts(tx, staging) if how == "read" else texts.reuse_texts(tx, [claim], "e"))

    staging = threading.Thread(target=stage)
    with fltr.transaction() as tx:
        tx.execute(text("SELECT FROM pipeline.generations WHERE generation = :g FOR UPDATE"), {"g": claim.generation})
        staging.start()
        wait_for(lambda: fltr.one("SELECT count(*) FROM pg_locks WHERE NOT granted") > (0,))
        assert fltr.claim(dataset, run="other") == []
    staging.join()
    assert held == {claim.document_id}
    (taken,) = fltr.claim(dataset, run="other")
    with fltr.transaction() as tx:
        assert texts.staged_texts(tx, [taken]) == {claim.document_id: "alpha beta"}
        assert texts.stage_texts(tx, [staged(claim, "late")]) == texts.reuse_texts(tx, [claim], "e") == set()


@pytest.mark.parametrize("case", ["fence lost", "deleted", "never published", "replaced inline"])
def test_there_is_no_text_to_take_over(fltr: Fltr, case: str) -> None:
    dataset, claim = published(fltr, "alpha beta")
    if case == "never published":
        fltr.upload(dataset, "b")
        (claim,) = fltr.claim(dataset)
    else:
        fltr.upload_anew(dataset, claim.document_id)
        (claim,) = fltr.claim(dataset)
        if case == "deleted":
            fltr.change("DELETE FROM documents")
        elif case == "replaced inline":
            fltr.change("UPDATE documents SET content = 'alpha beta '")
        else:
            steal(fltr, claim)
    with fltr.transaction() as tx:
        assert texts.reuse_texts(tx, [claim], "extractor-2") == set()
        assert texts.staged_texts(tx, [claim]) == {}


# --- an input that is live already ------------------------------------------------------------------------------------


def again(fltr: Fltr) -> tuple[Dataset, Claim]:
    """A published document, uploaded anew and claimed."""
    dataset, first = published(fltr, "alpha beta")
    fltr.upload_anew(dataset, first.document_id)
    (claim,) = fltr.claim(dataset)
    return dataset, claim


def confirm(fltr: Fltr, *claims: Claim) -> set[str]:
    with fltr.transaction() as tx:
        return generations.confirm(tx, claims)


def test_a_confirmed_document_is_ready_as_it_was(fltr: Fltr) -> None:
    dataset, claim = again(fltr)
    before = fltr.rows("SELECT * FROM pipeline.chunks ORDER BY ordinal")
    assert confirm(fltr, claim) == {claim.document_id}
    assert fltr.statuses(dataset) == {"a": "ready"}
    assert fltr.jobs(claim.document_id) == ["completed", "completed"]
    assert fltr.state(claim.document_id, "stage, lease_until, live_generation") == (None, None, 1)
    assert fltr.rows("SELECT * FROM pipeline.chunks ORDER BY ordinal") == before
    assert confirm(fltr) == set()


def test_a_confirmation_drops_what_an_earlier_worker_staged(fltr: Fltr) -> None:
    _, claim = again(fltr)
    fltr.stage_text(claim, "gamma")
    fltr.plan(claim, words("gamma"))
    assert confirm(fltr, claim) == {claim.document_id}
    assert fltr.rows("SELECT generation FROM pipeline.generations") == [(1,)]
    assert fltr.rows("SELECT DISTINCT generation FROM pipeline.chunks") == [(1,)]


@pytest.mark.parametrize("case", ["fence lost", "uploaded anew", "deleted"])
def test_what_changed_meanwhile_is_not_confirmed(fltr: Fltr, case: str) -> None:
    dataset, claim = again(fltr)
    if case == "deleted":
        fltr.change("DELETE FROM documents")
    elif case == "uploaded anew":
        fltr.upload_anew(dataset, claim.document_id)
    else:
        steal(fltr, claim)
    assert confirm(fltr, claim) == set()
    stage, status = ("extract", "processing") if case == "fence lost" else (None, "uploaded")
    assert fltr.state(claim.document_id, "stage") == (stage,)
    assert fltr.statuses(dataset) == ({} if case == "deleted" else {"a": status})
