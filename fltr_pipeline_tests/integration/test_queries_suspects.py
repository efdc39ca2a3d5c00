"""What a dead worker left: offered alone, first, and after a wait that grows with the deaths."""

import pytest

from fltr_pipeline.models import Stage
from fltr_pipeline.stores.fltr import claims, leases
from fltr_pipeline.stores.fltr.claims import Wait
from fltr_pipeline_tests.queries import Fltr

SECONDS = "extract(epoch FROM retry_at - lease_until)::int"


def names(fltr: Fltr, **claiming: object) -> list[str]:
    """Of each claim until nothing is left, the filenames."""
    dataset = claiming.pop("dataset")
    found = []
    while claimed := fltr.claim(dataset, **claiming):  # type: ignore[arg-type]
        found.append("".join(sorted(c.filename for c in claimed)))
    return found


def test_those_in_the_hands_of_a_dead_worker_are_claimed_one_by_one_and_before_all_others(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a", "b", "c")
    fltr.claim(dataset, run="dead")
    fltr.let_leases_run_out()
    fltr.upload(dataset, "d", "e")
    *alone, rest = names(fltr, dataset=dataset, run="next")
    assert (sorted(alone), rest) == (["a", "b", "c"], "de")
    assert set(fltr.rows("SELECT attempts FROM pipeline.documents")) == {(1,), (0,)}


def test_the_next_death_is_blamed_on_the_one_in_hand_alone(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, *"abcd")
    fltr.claim(dataset, run="dead")
    fltr.let_leases_run_out()
    (poison,) = fltr.claim(dataset, run="dead, too")
    fltr.let_leases_run_out()
    for _ in range(3):
        (innocent,) = fltr.claim(dataset, run="next")
        assert innocent.attempts == 1
        fltr.advance([innocent], Stage.PLAN)
    (claim,) = fltr.claim(dataset, run="next")
    assert (claim.document_id, claim.attempts) == (poison.document_id, 2)
    assert {c.attempts for c in fltr.claim(dataset, Stage.PLAN)} == {0}


def test_after_a_death_alone_it_waits_longer_each_time_and_holds_up_no_other(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "poison")
    fltr.claim(dataset)
    assert fltr.state(document, "retry_at") == (None,)
    for wait in (10, 20, 40):
        fltr.let_leases_run_out()
        assert [c.filename for c in fltr.claim(dataset)] == ["poison"]
        assert fltr.state(document, SECONDS) == (wait,)
    with fltr.transaction() as tx:
        assert leases.expire_runs(tx, ["run"]) == [document]
    fltr.upload(dataset, "other")
    assert [c.filename for c in fltr.claim(dataset)] == ["other"]
    fltr.change("UPDATE pipeline.documents SET retry_at = now() WHERE document_id = :d", d=document)
    assert [c.filename for c in fltr.claim(dataset)] == ["poison"]


def test_the_wait_begins_where_the_lease_ends_however_often_that_was_renewed(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (suspect,) = fltr.upload(dataset, "a")
    fltr.claim(dataset)
    fltr.let_leases_run_out()
    (claim,) = fltr.claim(dataset)
    (other,) = fltr.upload(dataset, "b")
    fltr.claim(dataset)
    with fltr.transaction() as tx:
        leases.heartbeat(tx, run_id="run", lease_seconds=3600)
    assert fltr.state(suspect, SECONDS) == (10,)
    assert fltr.state(other, "lease_until > now() + interval '30 min', retry_at") == (True, None)
    fltr.advance([claim], Stage.PLAN)
    assert fltr.state(suspect, "attempts, retry_at") == (0, None)


def test_who_awaits_credits_does_not_wait_for_anything_else(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    fltr.claim(dataset)
    fltr.let_leases_run_out()
    with fltr.transaction() as tx:
        claims.wait_for_credits(tx, [Wait(c, 3, "user", "u") for c in fltr.claim(dataset)])
    assert fltr.state(document, "credits_needed, retry_at <= now(), attempts") == (3, True, 1)
    assert fltr.claim(dataset) == []
    assert [c.filename for c in fltr.claim(dataset, run="another")] == ["a"]


def test_one_that_is_uploaded_anew_is_an_upload_like_any_other(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a", "b")
    old = {c.filename: c for c in fltr.claim(dataset, run="dead")}
    fltr.let_leases_run_out()
    fltr.change("UPDATE documents SET status = 'uploaded' WHERE id = :d", d=old["a"].document_id)
    fltr.upload_anew(dataset, old["b"].document_id)
    new = {c.filename: c for c in fltr.claim(dataset)}
    assert {n: c.generation for n, c in new.items()} == {"a": old["a"].generation, "b": old["b"].generation + 1}
    assert {n: c.fence for n, c in new.items()} == {n: c.fence + 1 for n, c in old.items()}
    assert {c.attempts for c in new.values()} == {0}


@pytest.mark.parametrize("stage", [Stage.EXTRACT, Stage.PLAN])
def test_two_workers_take_two_suspects_and_neither_waits(fltr: Fltr, stage: Stage) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a", "b")
    if stage is Stage.PLAN:
        fltr.advance(fltr.claim(dataset), Stage.PLAN)
    fltr.claim(dataset, stage, run="dead")
    fltr.let_leases_run_out()

    with fltr.impatient() as one, fltr.impatient() as two:
        taken = [
            claims.claim(tx, dataset_id=dataset.id, stage=stage, run_id=run, limit=9, lease_seconds=60)
            for tx, run in ((one, "one"), (two, "two"))
        ]
    assert sorted(c.filename for claimed in taken for c in claimed) == ["a", "b"]
    assert [len(claimed) for claimed in taken] == [1, 1]
