"""Which runs to launch: bounded, fair and always the same."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.credits.holds import Pot
from fltr_pipeline.pipeline.dispatch import runs_to_launch, waiting_documents
from fltr_pipeline.stores.fltr.datasets import Awaiting, Backlog

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def ago(minutes: int) -> datetime:
    return NOON - timedelta(minutes=minutes)


@st.composite
def backlogs(draw: st.DrawFn) -> list[Backlog]:
    ids = draw(st.lists(st.sampled_from("abcdefgh"), unique=True))
    return [
        Backlog(
            i, draw(st.sampled_from(["ann", "bob", "cyd"])), draw(st.integers(1, 3000)),
            draw(st.none() | st.integers(0, 99).map(ago)),
        )
        for i in ids
    ]  # fmt: skip


IN_FLIGHT = st.dictionaries(st.sampled_from("abcdefghxyz"), st.integers(0, 4))
"""By dataset; some have no backlog any more."""


def wants(backlog: Backlog, per_run: int) -> int:
    return (backlog.waiting + per_run - 1) // per_run


@given(backlog=backlogs(), in_flight=IN_FLIGHT, per_run=st.integers(1, 600), most=st.integers(0, 12))
def test_never_more_than_allowed_nor_than_wanted_and_no_slot_is_left_empty(
    backlog: list[Backlog], in_flight: dict[str, int], per_run: int, most: int
) -> None:
    launched = runs_to_launch(backlog, in_flight, per_run=per_run, max_in_flight=most)
    of = Counter(launched)
    free = max(0, most - sum(in_flight.values()))
    open_ = {b.dataset_id: max(0, wants(b, per_run) - in_flight.get(b.dataset_id, 0)) for b in backlog}
    assert len(launched) == min(free, sum(open_.values()))
    assert all(n <= open_[dataset] for dataset, n in of.items())


@given(backlog=backlogs(), in_flight=IN_FLIGHT, per_run=st.integers(1, 600), most=st.integers(0, 12))
def test_each_slot_goes_to_a_payer_with_the_fewest_runs(
    backlog: list[Backlog], in_flight: dict[str, int], per_run: int, most: int
) -> None:
    payer = {b.dataset_id: b.user_id for b in backlog}
    open_ = {b.dataset_id: wants(b, per_run) - in_flight.get(b.dataset_id, 0) for b in backlog}
    busy = Counter(dict.fromkeys(payer.values(), 0))
    for dataset, n in in_flight.items():
        if dataset in payer:
            busy[payer[dataset]] += n
    for dataset in runs_to_launch(backlog, in_flight, per_run=per_run, max_in_flight=most):
        assert busy[payer[dataset]] == min(busy[payer[i]] for i, n in open_.items() if n > 0)
        open_[dataset] -= 1
        busy[payer[dataset]] += 1


@given(backlog=backlogs(), in_flight=IN_FLIGHT, most=st.integers(0, 12), seed=st.randoms())
def test_the_order_in_which_the_backlog_is_read_does_not_matter(
    backlog: list[Backlog], in_flight: dict[str, int], most: int, seed: random.Random
) -> None:
    launched = runs_to_launch(backlog, in_flight, per_run=100, max_in_flight=most)
    shuffled = seed.sample(backlog, len(backlog))
    assert runs_to_launch(shuffled, in_flight, per_run=100, max_in_flight=most) == launched


def test_a_single_file_is_next_however_much_another_payer_has_waiting() -> None:
    backlog = [Backlog("big", "ann", 20_000, ago(60)), Backlog("small", "bob", 1, ago(1))]
    assert runs_to_launch(backlog, {"big": 2}, per_run=500, max_in_flight=3) == ["small"]
    assert runs_to_launch(backlog, {}, per_run=500, max_in_flight=3) == ["big", "small", "big"]


def test_a_payers_datasets_take_turns_the_longest_waiting_first_and_new_uploads_before_the_rest() -> None:
    backlog = [
        Backlog("new", "ann", 900, ago(1)),
        Backlog("old", "ann", 900, ago(9)),
        Backlog("parked", "ann", 900, None),
    ]
    assert runs_to_launch(backlog, {}, per_run=100, max_in_flight=4) == ["old", "new", "parked", "old"]


def test_nothing_waits_nothing_is_launched() -> None:
    assert runs_to_launch([], {}, per_run=500, max_in_flight=4) == []
    assert runs_to_launch([], {"gone": 1}, per_run=500, max_in_flight=4) == []
    assert waiting_documents([], [], {}) == []


def test_what_awaits_credits_counts_as_far_as_its_pot_can_pay() -> None:
    awaiting = [
        Awaiting("a", "ann", "user", "rich", documents=4, least=3),
        Awaiting("b", "ann", "user", "poor", documents=4, least=3),
        Awaiting("c", "bob", "team", "some", documents=4, least=3),
    ]
    balances = {Pot("user", "rich"): 100, Pot("user", "poor"): 2, Pot("team", "some"): 7}
    found = waiting_documents([], awaiting, balances)
    assert found == [Backlog("a", "ann", 4, None), Backlog("c", "bob", 2, None)]


def test_it_adds_to_the_backlog_of_its_dataset() -> None:
    backlog = [Backlog("a", "ann", 5, ago(1)), Backlog("b", "bob", 1, None)]
    awaiting = [Awaiting("a", "ann", kind, "p", documents=2, least=1) for kind in ("user", "team")]
    balances = {Pot("user", "p"): 9, Pot("team", "p"): 9}
    assert waiting_documents(backlog, awaiting, balances) == [Backlog("a", "ann", 9, ago(1)), backlog[1]]


def test_where_the_pot_is_gone_a_run_tells_the_documents_so() -> None:
    awaiting = [Awaiting("a", "ann", "team", "gone", documents=2, least=5)]
    assert waiting_documents([], awaiting, {}) == [Backlog("a", "ann", 2, None)]
