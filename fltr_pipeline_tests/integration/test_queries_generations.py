"""Generations and the manifest: what a version is made of, and when it is the live one."""

import threading
import uuid
from dataclasses import replace
from hashlib import md5, sha256

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from fltr_pipeline.models import Stage
from fltr_pipeline.stores.fltr import claims, generations, manifest, moved, plans, texts
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.fltr.generations import FreshChunk
from fltr_pipeline.stores.fltr.manifest import LivePage, Place
from fltr_pipeline.stores.fltr.plans import PlannedChunk
from fltr_pipeline_tests.moments import wait_for
from fltr_pipeline_tests.queries import FINGERPRINT, Fltr, claimed, published, steal, words

UNKNOWN = str(uuid.uuid4())


def planned(fltr: Fltr, content: str) -> tuple[Dataset, Claim]:
    """A document at the last stage, with a chunk to embed per word."""
    dataset, (claim,) = claimed(fltr)
    fltr.stage_text(claim, content)
    fltr.plan(claim, words(content))
    fltr.advance([claim], Stage.EMBED)
    (claim,) = fltr.claim(dataset, Stage.EMBED)
    return dataset, claim


def assigned(fltr: Fltr, *claims: Claim) -> list[FreshChunk]:
    with fltr.transaction() as tx:
        return generations.assign_keys(tx, claims)


def keys(fltr: Fltr, claim: Claim) -> list[str | None]:
    query = "SELECT key FROM pipeline.chunks WHERE document_id = :d AND generation = :g ORDER BY ordinal"
    return [key for (key,) in fltr.rows(query, d=claim.document_id, g=claim.generation)]


def live_keys(tx: Connection, dataset: Dataset) -> set[str]:
    return set(manifest.live_page(tx, dataset.id, "", 10).keys)


def retired(fltr: Fltr, dataset: Dataset) -> list[str]:
    with fltr.transaction() as tx:
        return list(manifest.retired_keys(tx, dataset.id, "", 100))


# --- the plan and its keys --------------------------------------------------------------------------------------------


def test_a_plan_is_counted_in_fresh_and_kept_chunks(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    fltr.stage_text(claim, "alpha beta gamma")
    kept = {sha256(b"beta").hexdigest(): ["key-of-beta"]}
    assert fltr.plan(claim, words("alpha beta gamma", kept)) == {claim.document_id}
    columns = "state, fingerprint, chunks, tokens, fresh_chunks, fresh_tokens"
    assert fltr.one(f"SELECT {columns} FROM pipeline.generations") == ("planned", FINGERPRINT, 3, 6, 2, 4)
    assert keys(fltr, claim) == [None, "key-of-beta", None]
    with fltr.transaction() as tx:
        assert generations.fresh_tokens(tx, [claim]) == {claim.document_id: 4}


def test_planning_again_replaces_and_a_plan_may_be_empty(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    fltr.stage_text(claim, "alpha beta")
    fltr.plan(claim, words("alpha beta"))
    fltr.plan(claim, [])
    assert keys(fltr, claim) == []
    with fltr.transaction() as tx:
        assert generations.fresh_tokens(tx, [claim]) == {claim.document_id: 0}
        assert plans.store_plan(tx, [], FINGERPRINT) == set()


def test_a_lost_fence_plans_nothing(fltr: Fltr) -> None:
    _, (lost, held) = claimed(fltr, "a", "b")
    for claim in (lost, held):
        fltr.stage_text(claim, "alpha")
    steal(fltr, lost)
    with fltr.transaction() as tx:
        both = [(claim, words("alpha")) for claim in (lost, held)]
        assert plans.store_plan(tx, both, FINGERPRINT) == {held.document_id}
        assert generations.fresh_tokens(tx, [lost, held]) == {held.document_id: 2}
        assert generations.fresh_tokens(tx, []) == {}
    assert keys(fltr, lost) == []


def test_keys_can_be_kept_from_the_live_generation_of_the_same_configuration(fltr: Fltr) -> None:
    _, claim = published(fltr, "alpha beta alpha")
    with fltr.transaction() as tx:
        assert plans.live_keys(tx, [claim.document_id], "another") == {}
        assert plans.live_keys(tx, [], FINGERPRINT) == {}
        found = plans.live_keys(tx, [claim.document_id, UNKNOWN], FINGERPRINT)
    alpha, beta, again = keys(fltr, claim)
    digests = {sha256(b"alpha").hexdigest(): [alpha, again], sha256(b"beta").hexdigest(): [beta]}
    assert found == {claim.document_id: digests}


@pytest.mark.parametrize("unfit", ["", "text", "configuration", "fence"])
def test_a_plan_is_copied_where_text_and_configuration_are_the_live_ones(fltr: Fltr, unfit: str) -> None:
    dataset, live = published(fltr, "alpha beta")
    fltr.upload_anew(dataset, live.document_id)
    (claim,) = fltr.claim(dataset)
    fltr.stage_text(claim, "gamma" if unfit == "text" else "alpha beta")
    if unfit == "fence":
        steal(fltr, claim)
    with fltr.transaction() as tx:
        copied = plans.copy_plans(tx, [claim], "another" if unfit == "configuration" else FINGERPRINT)
        assert copied == ({} if unfit else {claim.document_id: [2, 2]})
        assert generations.fresh_tokens(tx, [claim]) == ({} if unfit else {claim.document_id: 0})
    assert keys(fltr, claim) == ([] if unfit else keys(fltr, live))


def test_fresh_chunks_get_keys_of_document_generation_fence_and_ordinal(fltr: Fltr) -> None:
    _, claim = planned(fltr, "alpha b\N{SNOWMAN}ta")
    found = assigned(fltr, claim)
    assert [(c.document_id, c.start, c.end, c.tokens) for c in found] == [
        (claim.document_id, 0, 5, 2),
        (claim.document_id, 6, 10, 2),
    ]
    names = [f"{claim.document_id}:{claim.generation}:{claim.fence}:{ordinal}" for ordinal in range(2)]
    assert [c.key for c in found] == [md5(name.encode(), usedforsecurity=False).hexdigest() for name in names]
    assert keys(fltr, claim) == [c.key for c in found]


def test_a_take_over_gets_keys_of_its_own_and_the_dead_workers_are_named_for_the_sweep(fltr: Fltr) -> None:
    dataset, dead = planned(fltr, "alpha beta")
    inert = [c.key for c in assigned(fltr, dead)]
    fltr.let_leases_run_out()
    (claim,) = fltr.claim(dataset, Stage.EMBED)
    mine = [c.key for c in assigned(fltr, claim)]
    assert not set(mine) & set(inert)
    assert retired(fltr, dataset) == sorted(inert)
    assert assigned(fltr, dead) == assigned(fltr) == []
    assert keys(fltr, claim) == mine


# --- decide and publish -----------------------------------------------------------------------------------------------


def test_the_decision_marks_generation_and_job_while_the_fence_holds(fltr: Fltr) -> None:
    _, claim = planned(fltr, "alpha")
    with fltr.transaction() as tx:
        assert generations.decide(tx, []) == set()
        assert generations.decide(tx, [claim]) == {claim.document_id}
    assert fltr.rows("SELECT state FROM pipeline.generations") == [("indexed",)]
    assert fltr.jobs(claim.document_id) == ["indexed"]


def test_a_lost_fence_neither_decides_nor_publishes(fltr: Fltr) -> None:
    dataset, claim = planned(fltr, "alpha")
    steal(fltr, claim)
    with fltr.transaction() as tx:
        assert generations.decide(tx, [claim]) == set()
    fltr.change("UPDATE pipeline.generations SET state = 'indexed'")
    with fltr.transaction() as tx:
        assert generations.publish(tx, [claim]) == set()
        assert generations.publish(tx, []) == set()
    assert fltr.statuses(dataset) == {"a": "processing"}
    assert fltr.jobs(claim.document_id) == ["running"]
    assert fltr.state(claim.document_id, "stage, live_generation") == ("embed", None)


def test_publishing_makes_content_status_job_and_manifest_live_at_once(fltr: Fltr) -> None:
    dataset, claim = published(fltr, "alpha beta")
    assert fltr.one("SELECT content, status FROM documents") == ("alpha beta", "ready")
    assert fltr.jobs(claim.document_id) == ["completed"]
    columns = "live_generation, stage, lease_until, error_code"
    assert fltr.state(claim.document_id, columns) == (claim.generation, None, None, None)
    assert fltr.one("SELECT state, text, published_at IS NOT NULL FROM pipeline.generations") == ("live", None, True)
    with fltr.transaction() as tx:
        assert live_keys(tx, dataset) == set(keys(fltr, claim))
        assert manifest.keys_of(tx, claim.dataset_id, [claim.document_id, UNKNOWN]) == set(keys(fltr, claim))
        assert manifest.keys_of(tx, UNKNOWN, [claim.document_id]) == set()
        assert manifest.keys_of(tx, claim.dataset_id, []) == set()


def test_what_was_not_decided_is_not_published(fltr: Fltr) -> None:
    dataset, claim = planned(fltr, "alpha")
    with fltr.transaction() as tx:
        assert generations.publish(tx, [claim]) == set()
    assert fltr.statuses(dataset) == {"a": "processing"}
    assert fltr.rows("SELECT content FROM documents") == [(None,)]


def test_work_on_an_old_input_is_not_published_but_kept_for_the_next_claim_which_may_be_of_the_same_bytes(
    fltr: Fltr,
) -> None:
    dataset, claim = planned(fltr, "alpha")
    mine = [c.key for c in assigned(fltr, claim)]
    fltr.upload_anew(dataset, claim.document_id)
    with fltr.transaction() as tx:
        generations.decide(tx, [claim])
        assert generations.publish(tx, [claim]) == set()
    assert fltr.rows("SELECT content FROM documents") == [(None,)]
    assert fltr.jobs(claim.document_id) == ["canceled"]
    assert fltr.state(claim.document_id, "stage, live_generation") == (None, None)
    assert retired(fltr, dataset) == []
    (again,) = fltr.claim(dataset)
    assert (again.generation, again.billable) == (claim.generation, True)
    with fltr.transaction() as tx:
        generations.discard_others(tx, [claim.document_id])
        assert texts.staged_sources(tx, [again]).keys() == {claim.document_id}
        assert claims.renew(tx, [claim]) == []  # its fence is lost
        (renewed,) = claims.renew(tx, [again])
        assert renewed == replace(again, generation=claim.generation + 1)
        assert texts.staged_sources(tx, [renewed]) == {}
        generations.discard_others(tx, [claim.document_id])
    assert retired(fltr, dataset) == mine
    assert fltr.rows("SELECT * FROM pipeline.generations") == fltr.rows("SELECT * FROM pipeline.chunks") == []


def test_a_new_input_is_a_new_generation_where_nothing_is_staged_or_the_attempt_before_was_free_or_elsewhere(
    fltr: Fltr,
) -> None:
    for what in ("nothing staged", "free", "elsewhere"):
        dataset, claim = planned(fltr, "alpha")
        if what == "nothing staged":
            fltr.change("DELETE FROM pipeline.generations WHERE document_id = :d", d=claim.document_id)
        elif what == "free":
            fltr.change("UPDATE pipeline.documents SET billable = false WHERE document_id = :d", d=claim.document_id)
        else:
            dataset = fltr.dataset("other")
            fltr.change("UPDATE documents SET dataset_id = :s WHERE id = :d", s=dataset.id, d=claim.document_id)
        fltr.upload_anew(dataset, claim.document_id)
        if what == "elsewhere":
            assert fltr.claim(dataset) == [], "not before it was followed"
            with fltr.transaction() as tx:
                assert moved.arrived(tx, dataset.id) == [claim.document_id]
                assert moved.follow(tx, moved.among(tx, [claim.document_id])) == 1
        (again,) = fltr.claim(dataset)
        assert (again.generation, again.billable) == (claim.generation + 1, True), what


def test_a_rename_meanwhile_does_not_hold_a_document_back(fltr: Fltr) -> None:
    dataset, claim = planned(fltr, "alpha")
    fltr.change("UPDATE documents SET filename = 'b', updated_at = updated_at + interval '1 s'")
    with fltr.transaction() as tx:
        generations.decide(tx, [claim])
        assert generations.publish(tx, [claim]) == {claim.document_id}
    assert fltr.statuses(dataset) == {"b": "ready"}


def test_a_new_version_retires_only_the_keys_that_it_does_not_keep(fltr: Fltr) -> None:
    dataset, first = published(fltr, "alpha beta")
    old = keys(fltr, first)
    fltr.upload_anew(dataset, first.document_id)
    (second,) = fltr.publish(dataset, "alpha gamma")
    assert keys(fltr, second)[0] == old[0]
    assert fltr.rows("SELECT fresh_chunks, fresh_tokens FROM pipeline.generations") == [(1, 2)]
    assert retired(fltr, dataset) == [old[1]]
    with fltr.transaction() as tx:
        assert live_keys(tx, dataset) == set(keys(fltr, second))
    assert fltr.rows("SELECT generation FROM pipeline.generations") == [(second.generation,)]
    assert fltr.rows("SELECT DISTINCT generation FROM pipeline.chunks") == [(second.generation,)]


def test_discarding_spares_the_live_generation_and_the_one_in_flight(fltr: Fltr) -> None:
    dataset, live = published(fltr, "alpha")
    fltr.upload_anew(dataset, live.document_id)
    (claim,) = fltr.claim(dataset)
    fltr.stage_text(claim, "beta")
    fltr.plan(claim, words("beta"))
    (mine,) = assigned(fltr, claim)

    def discard() -> list[tuple[int, str]]:
        with fltr.transaction() as tx:
            generations.discard_others(tx, [])
            generations.discard_others(tx, [claim.document_id, UNKNOWN])
        return [(g, key) for g, key in fltr.rows("SELECT generation, key FROM pipeline.chunks ORDER BY 1")]

    assert discard() == [(live.generation, *keys(fltr, live)), (claim.generation, mine.key)]
    fltr.change("UPDATE pipeline.documents SET stage = NULL")
    assert discard() == [(live.generation, *keys(fltr, live))]
    assert retired(fltr, dataset) == [mine.key]


# --- the manifest -----------------------------------------------------------------------------------------------------


def test_retired_keys_are_listed_by_dataset_and_forgotten_by_key(fltr: Fltr) -> None:
    one, two = fltr.dataset(), fltr.dataset()
    for key, dataset in (("c", one), ("a", one), ("b", one), ("z", two)):
        fltr.change("INSERT INTO pipeline.retired_keys VALUES (:k, :d, 'x')", k=key, d=dataset.id)
    with fltr.transaction() as tx:
        found = manifest.retired_keys(tx, one.id, "", 2)
        assert list(found) == ["a", "b"]
        assert list(manifest.retired_keys(tx, one.id, "b", 2)) == ["c"]
        assert manifest.retired_keys(tx, UNKNOWN, "", 2) == {}
        manifest.forget_retired(tx, {})
        manifest.forget_retired(tx, {**found, "unknown": found["a"]})
        assert list(manifest.retired_keys(tx, one.id, "", 2)) == ["c"]
        assert list(manifest.retired_keys(tx, two.id, "", 2)) == ["z"]


def test_a_key_that_a_late_worker_names_anew_is_not_forgotten_by_the_sweep_that_saw_it_before(fltr: Fltr) -> None:
    dataset, dead = planned(fltr, "alpha beta")
    late = assigned(fltr, dead)
    fltr.let_leases_run_out()
    (claim,) = fltr.claim(dataset, Stage.EMBED)
    assigned(fltr, claim)
    with fltr.transaction() as tx:
        seen = manifest.retired_keys(tx, dataset.id, "", 100)
    with fltr.transaction() as tx:
        assert generations.held_behind_inserts(tx, [dead], late[:1]) == set()
    with fltr.transaction() as tx:
        manifest.forget_retired(tx, seen)
    assert retired(fltr, dataset) == [late[0].key]


def test_a_worker_that_was_partly_replaced_locks_its_documents_in_their_order(fltr: Fltr) -> None:
    """It waits for the first one with the second one free, as whoever has the first and wants the second needs it."""
    _, one = planned(fltr, "alpha beta")
    _, two = planned(fltr, "alpha beta")
    lost, kept = sorted((one, two), key=lambda c: c.document_id)
    inserted = assigned(fltr, lost)
    steal(fltr, lost)
    found: list[set[str]] = []

    def worker() -> None:
        with fltr.transaction() as tx:
            found.append(generations.held_behind_inserts(tx, [lost, kept], inserted))

    thread = threading.Thread(target=worker)
    lock = "SELECT FROM pipeline.documents WHERE document_id = :id FOR UPDATE NOWAIT"
    with fltr.transaction() as tx:
        tx.execute(text(lock), {"id": lost.document_id})
        thread.start()
        wait_for(lambda: fltr.rows("SELECT FROM pg_locks WHERE NOT granted") != [])
        tx.execute(text(lock), {"id": kept.document_id})
    thread.join()
    assert found == [{kept.document_id}]


def test_keys_in_flight_and_retired_are_named_without_being_live(fltr: Fltr) -> None:
    dataset, claim = planned(fltr, "alpha beta")
    mine = {c.key for c in assigned(fltr, claim)}
    fltr.change("INSERT INTO pipeline.retired_keys VALUES ('old', :d, 'x')", d=dataset.id)
    with fltr.transaction() as tx:
        assert manifest.named(tx, {*mine, "old", UNKNOWN}) == {*mine, "old"}
        assert manifest.named(tx, []) == set()
        assert live_keys(tx, dataset) == manifest.still_live(tx, mine) == set()
        assert manifest.live_page(tx, UNKNOWN, "", 10) == LivePage("", frozenset(), 0)


def test_a_hit_has_its_place_in_the_content(fltr: Fltr) -> None:
    dataset, claim = published(fltr, "alpha b\N{SNOWMAN}ta")
    _, beta = keys(fltr, claim)
    assert beta is not None
    found = places(fltr, dataset, (beta, claim.document_id), ("unknown", claim.document_id), ("other", UNKNOWN))
    place = Place(beta, claim.document_id, "a", page=1, start=6, end=10, ordinal=1, text="b\N{SNOWMAN}ta")
    assert found == {beta: place}
    assert places(fltr, dataset) == {}


def test_a_hit_counts_only_if_it_is_live_in_a_document_of_that_dataset(fltr: Fltr) -> None:
    dataset, claim = published(fltr, "alpha")
    (key,) = keys(fltr, claim)
    assert key is not None
    hit = (key, claim.document_id)
    assert places(fltr, fltr.dataset(), hit) == {}
    assert places(fltr, dataset, (key, UNKNOWN)) == {}
    for unfit, fit in (
        ("pipeline.documents SET live_generation = 99", f"pipeline.documents SET live_generation = {claim.generation}"),
        ("documents SET content = 'omega beta'", "documents SET content = 'alpha beta'"),
    ):
        fltr.change(f"UPDATE {unfit}")
        assert places(fltr, dataset, hit) == {}
        fltr.change(f"UPDATE {fit}")
    assert set(places(fltr, dataset, hit)) == {key}
    fltr.change("DELETE FROM documents")
    assert places(fltr, dataset, hit) == {}


def places(fltr: Fltr, dataset: Dataset, *hits: tuple[str, str]) -> dict[str, Place]:
    with fltr.transaction() as tx:
        return manifest.places(tx, dataset.id, hits)


def test_a_key_that_two_generations_hold_has_one_place_the_live_one(fltr: Fltr) -> None:
    dataset, live = published(fltr, "alpha beta")
    alpha, _ = keys(fltr, live)
    assert alpha is not None
    fltr.upload_anew(dataset, live.document_id)
    (claim,) = fltr.claim(dataset)
    fltr.stage_text(claim, "gamma alpha")
    fltr.plan(claim, [PlannedChunk(0, alpha, sha256(b"alpha").hexdigest(), 1, 6, 11, 2)])
    assert places(fltr, dataset, (alpha, live.document_id))[alpha].start == 0


def test_offsets_are_checked_by_the_table(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    fltr.stage_text(claim, "alpha")
    with pytest.raises(IntegrityError):
        fltr.plan(claim, [PlannedChunk(0, None, "d", 1, 3, 3, 1)])
