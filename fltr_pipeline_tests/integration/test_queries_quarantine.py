"""The quarantine: which contents are not tried again, under what, and who is let in again."""

import hashlib
from typing import Any

from fltr_pipeline.models import ReprocessMode, Stage
from fltr_pipeline.stores.fltr import claims, generations, quarantine, requeue
from fltr_pipeline.stores.fltr.claims import Claim, Failure
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.fltr.quarantine import Content, Record
from fltr_pipeline_tests.queries import Fltr, redoing, staged, words

POISON = Content("ab" * 32, 66)


def ask(fltr: Fltr, query: Any, *arguments: object, **named: object) -> Any:
    with fltr.transaction() as tx:
        return query(tx, *arguments, **named)


def remember(fltr: Fltr, claim: Claim, content: Content = POISON, **changes: object) -> None:
    how: dict[str, Any] = {"tried_with": "now", "code": "time_limit", "tries": 1, "allowed": 2}
    ask(fltr, quarantine.remember, claim, content, **how | changes)


def known(fltr: Fltr, tried_with: str = "now", sizes: tuple[int, ...] = (66,)) -> dict[str, Record]:
    found: dict[str, Record] = ask(fltr, quarantine.of_sizes, sizes, tried_with)
    return found


def claimed(fltr: Fltr, filename: str = "a") -> Claim:
    dataset = fltr.dataset()
    fltr.upload(dataset, filename)
    (claim,) = fltr.claim(dataset)
    return claim


def test_a_content_is_tried_until_it_failed_as_often_as_is_allowed(fltr: Fltr) -> None:
    claim = claimed(fltr)
    remember(fltr, claim)
    assert known(fltr) == {}
    remember(fltr, claim, code="parser_crash")
    (record,) = known(fltr).values()
    assert (record.sha256, record.code, record.tries) == (POISON.sha256, "parser_crash", 2)
    assert fltr.state(claim.document_id, "quarantine_sha256") == (POISON.sha256,)


def test_only_of_the_sizes_asked_for_and_under_the_configuration_that_it_failed_with(fltr: Fltr) -> None:
    remember(fltr, claimed(fltr), tries=5, allowed=1)
    assert known(fltr, sizes=(65, 66, 66, 67)).keys() == {POISON.sha256}
    assert known(fltr, sizes=(65, 67)) == known(fltr, sizes=()) == known(fltr, "another") == {}


def test_a_success_forgives_the_failures_before_it_but_lifts_no_quarantine(fltr: Fltr) -> None:
    claim, kept = claimed(fltr), Content("cd" * 32, 66)
    remember(fltr, claim)
    remember(fltr, claim, tried_with="before")
    remember(fltr, claim, kept, tries=2)
    ask(fltr, quarantine.forgive, [POISON.sha256, kept.sha256], "now")
    ask(fltr, quarantine.forgive, [], "now")
    left = "SELECT source_sha256, tried_with FROM pipeline.quarantine ORDER BY 1"
    assert fltr.rows(left) == [(POISON.sha256, "before"), (kept.sha256, "now")]
    remember(fltr, claim)
    assert known(fltr).keys() == {kept.sha256}, "counted from one again"


def test_who_lost_its_fence_says_nothing_of_the_document(fltr: Fltr) -> None:
    claim = claimed(fltr)
    fltr.change("UPDATE pipeline.documents SET fence = fence + 1")
    remember(fltr, claim, allowed=1)
    assert fltr.state(claim.document_id, "quarantine_sha256") == (None,)
    assert known(fltr).keys() == {POISON.sha256}


def test_extracted_documents_of_the_content_are_found_until_they_are_decided(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a", "b")
    one, other = fltr.claim(dataset)
    fltr.stage_text(one, "alpha beta")
    fltr.stage_text(other, "gamma")
    content = ask(fltr, quarantine.staged_content, one)
    assert content == Content(staged(one, "alpha beta").source_sha256, 10)
    remember(fltr, one, content, allowed=1)
    assert ask(fltr, quarantine.of_claims, [one, other], "now") == {}, "only parsers end at it: theirs is done"
    remember(fltr, one, content, code="gave_up")
    assert ask(fltr, quarantine.of_claims, [one, other], "now").keys() == {one.document_id}
    assert ask(fltr, quarantine.of_claims, [one], "another") == ask(fltr, quarantine.of_claims, [], "now") == {}
    fltr.plan(one, words("alpha beta"))
    assert ask(fltr, generations.decide, [one]) == {one.document_id}
    assert ask(fltr, quarantine.of_claims, [one], "now") == {}


def test_the_content_of_inline_text_is_that_of_its_bytes(fltr: Fltr) -> None:
    claim = claimed(fltr)
    assert ask(fltr, quarantine.staged_content, claim) is None
    assert ask(fltr, quarantine.inline_content, claim.document_id) is None
    fltr.change("UPDATE documents SET content = 'día'")
    digest = hashlib.sha256("día".encode()).hexdigest()
    assert ask(fltr, quarantine.inline_content, claim.document_id) == Content(digest, 4)


def failed(fltr: Fltr, code: str, content: Content = POISON) -> Claim:
    claim = claimed(fltr)
    remember(fltr, claim, content, tries=5, allowed=1)
    ask(fltr, claims.fail, [Failure(claim, code, "")])
    return claim


def requeued(fltr: Fltr, claim: Claim, mode: ReprocessMode, *, retryable: list[str] | None, tried_with: str) -> int:
    redo = redoing(claim.dataset_id, mode, fingerprint="f", retryable=retryable, tried_with=tried_with)
    with fltr.transaction() as tx:
        return requeue.requeue(tx, redo, requeue.choose(tx, redo))


def test_a_backfill_tries_again_what_was_quarantined_under_another_configuration(fltr: Fltr) -> None:
    claim = failed(fltr, "quarantined")
    for tried_with, n in (("now", 0), ("another", 1)):
        found = ask(
            fltr,
            requeue.backfill_candidates,
            fingerprint="f",
            extractor="extractor-1",
            tried_with=tried_with,
            retryable=["gave_up"],
        )
        assert found == [claim.dataset_id] * n
        assert requeued(fltr, claim, ReprocessMode.stale, retryable=["gave_up"], tried_with=tried_with) == n


def test_a_person_who_reprocesses_what_failed_lets_the_content_in_again_wherever_it_is(fltr: Fltr) -> None:
    claim, other = failed(fltr, "gave_up"), failed(fltr, "gave_up", content=Content("cd" * 32, 66))
    assert requeued(fltr, claim, ReprocessMode.pending, retryable=None, tried_with="now") == 0
    assert requeued(fltr, claim, ReprocessMode.stale, retryable=["gave_up"], tried_with="now") == 1
    fltr.change("UPDATE documents SET status = 'failed'")
    assert known(fltr).keys() == {POISON.sha256, "cd" * 32}
    assert requeued(fltr, claim, ReprocessMode.failed, retryable=None, tried_with="now") == 1
    assert known(fltr).keys() == {"cd" * 32}
    assert fltr.statuses(Dataset(other.dataset_id, "", "")) == {"a": "failed"}


def test_a_new_claim_forgets_nothing_that_a_requeueing_needs(fltr: Fltr) -> None:
    claim = failed(fltr, "quarantined")
    requeued(fltr, claim, ReprocessMode.failed, retryable=None, tried_with="now")
    (again,) = fltr.claim(Dataset(claim.dataset_id, "", ""), Stage.EXTRACT)
    assert fltr.state(again.document_id, "quarantine_sha256, error_code") == (POISON.sha256, None)
