"""What is free stays so where it failed by our fault and is tried again; what was never paid for is not free by it."""

import shutil
from collections.abc import Callable

import pytest

from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.shelves import Shelves, found, is_at_rest, move
from fltr_pipeline_tests.world import World


def breaks(*_: object) -> None:
    raise RuntimeError("a bug of ours")


def away(*_: object) -> None:
    raise StoreUnavailable("gone for a while")


def process_and_break(world: World, dataset: Dataset, mode: ReprocessMode = ReprocessMode.pending) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "perform", breaks)
        world.process(dataset, mode)


def moved(world: World, shelves: Shelves, *, touched: bool = False) -> Dataset:
    """`touched`: many applications set `updated_at` with each change of a row."""
    move(world, shelves.ids["a.txt"], shelves.other)
    if touched:
        world.change("UPDATE documents SET updated_at = clock_timestamp() WHERE id = %s", shelves.ids["a.txt"])
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    return shelves.other


def restored(world: World, shelves: Shelves) -> Dataset:
    world.change_auth("DELETE FROM users WHERE id = %s", shelves.payer.user_id)
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_ownerless=2)
    world.change_auth(
        "INSERT INTO users (id, name, email, email_verified) VALUES (%s, 'A', 'a@b.org', true)", shelves.payer.user_id
    )
    world.change_auth("INSERT INTO user_credits (user_id, credits) VALUES (%s, 50)", shelves.payer.user_id)
    assert world.sweep_all().withdrawn == Withdrawn(documents_restored=2)
    return shelves.books


MADE_ANEW = {
    "behind a move": moved,
    "behind a move that touches it": lambda world, shelves: moved(world, shelves, touched=True),
    "behind its owner's return": restored,
}  # fmt: skip


def spent(world: World, shelves: Shelves) -> int:
    return sum(world.statement(p).charged for p in (shelves.payer, shelves.other_payer))


@pytest.mark.parametrize("how", MADE_ANEW)
def test_what_is_made_anew_for_nothing_and_fails_is_tried_again_for_nothing(
    world: World, shelves: Shelves, how: str
) -> None:
    dataset = MADE_ANEW[how](world, shelves)
    before = spent(world, shelves)
    process_and_break(world, dataset)
    process_and_break(world, dataset, ReprocessMode.failed)
    assert set(world.statuses(dataset).values()) == {"failed"}
    world.process(dataset, ReprocessMode.failed)
    assert "a.txt" in found(world, dataset)
    assert spent(world, shelves) == before
    assert is_at_rest(world)


def test_what_is_made_anew_without_its_file_is_made_of_its_text_when_it_is_tried_again(
    world: World, shelves: Shelves
) -> None:
    before = found(world, shelves.books)["a.txt"]
    shutil.rmtree(world.blobs / shelves.books.id / shelves.ids["a.txt"])
    dataset, paid = moved(world, shelves), spent(world, shelves)
    process_and_break(world, dataset)
    assert world.statuses(dataset) == {"a.txt": "failed"}
    world.process(dataset, ReprocessMode.failed)
    assert found(world, dataset) == {"a.txt": before}
    assert spent(world, shelves) == paid
    assert is_at_rest(world)


def test_an_upload_behind_a_free_attempt_that_failed_costs_what_one_costs(world: World, shelves: Shelves) -> None:
    moved(world, shelves)
    process_and_break(world, shelves.other)
    world.upload(shelves.other, {"a.txt": b"A third text."})
    world.process(shelves.other)
    assert found(world, shelves.other) == {"a.txt": {"A third text."}}
    assert world.statement(shelves.other_payer).charged == 2
    assert is_at_rest(world)


def fails(world: World, shelves: Shelves) -> Dataset:
    process_and_break(world, shelves.other)
    return shelves.other


def moves_on(world: World, shelves: Shelves) -> Dataset:
    third = world.dataset(shelves.other_payer, "third")
    move(world, shelves.ids["a.txt"], third)
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    return third


def loses_its_owner(world: World, shelves: Shelves) -> Dataset:
    world.change("UPDATE datasets SET user_id = 'nobody' WHERE id = %s", shelves.other.id)
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_ownerless=1)
    world.change("UPDATE datasets SET user_id = %s WHERE id = %s", shelves.other_payer.user_id, shelves.other.id)
    return shelves.other


ENDS: dict[str, Callable[[World, Shelves], Dataset]] = {
    "fails": fails,
    "moves on": moves_on,
    "loses its owner": loses_its_owner,
    "is let go": lambda _, shelves: shelves.other,
}


def test_a_free_retry_whose_owner_goes_and_comes_back_stays_free(world: World, shelves: Shelves) -> None:
    dataset, before = moved(world, shelves), spent(world, shelves)
    process_and_break(world, dataset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "quote", away)
        with pytest.raises(StoreUnavailable):
            world.process(dataset, ReprocessMode.failed)
    loses_its_owner(world, shelves)
    world.process(dataset, ReprocessMode.failed)
    assert "a.txt" in found(world, dataset)
    assert spent(world, shelves) == before
    assert is_at_rest(world)


@pytest.mark.parametrize("how", ENDS)
def test_an_upload_that_failed_is_paid_for_however_the_free_repair_of_the_version_before_it_ends(
    world: World, shelves: Shelves, how: str
) -> None:
    """Moved, nothing of it is live any more, as behind a free attempt that failed."""
    world.upload(shelves.books, {"a.txt": b"A third text."})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embed, "perform", breaks)
        world.process(shelves.books)
    assert world.statuses(shelves.books)["a.txt"] == "failed"
    moved(world, shelves)
    before = spent(world, shelves)
    dataset = ENDS[how](world, shelves)
    assert world.statuses(dataset)["a.txt"] == "failed"
    world.process(dataset, ReprocessMode.failed)
    assert found(world, dataset) == {"a.txt": {"A third text."}}
    assert spent(world, shelves) - before == 2
    assert is_at_rest(world)


NOBODY_LEFT = ["before a step", "in the middle of one", "a pass sees it", "a pass sees it, and an upload came"]


@pytest.mark.parametrize("seen", NOBODY_LEFT)
def test_what_nobody_is_left_to_pay_for_gives_back_what_its_earlier_steps_cost(
    world: World, shelves: Shelves, seen: str
) -> None:
    """A dataset is given to somebody without an account; its earlier owner has paid for what is dropped now."""
    before = spent(world, shelves)
    world.upload(shelves.books, {"a.txt": b"A third text."})
    world.extract(shelves.books)
    assert spent(world, shelves) == before + 1
    if seen == "in the middle of one":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledger, "payers", lambda *_: {})
            world.change("UPDATE pipeline.documents SET api_key_id = 'a key' WHERE stage IS NOT NULL")
            world.stage(Plan(world.services), shelves.books)
    else:
        if seen == "a pass sees it, and an upload came":
            world.upload(shelves.books, {"a.txt": b"A third text."})
            world.stage(Plan(world.services), shelves.books)
        world.change("UPDATE datasets SET user_id = 'nobody' WHERE id = %s", shelves.books.id)
        if seen == "before a step":
            world.stage(Plan(world.services), shelves.books)
        else:
            world.sweep_all(list_keys=False)
        world.change("UPDATE datasets SET user_id = %s WHERE id = %s", shelves.payer.user_id, shelves.books.id)
    assert (spent(world, shelves), world.statement(shelves.payer).held) == (before, 0)
    world.sweep_all()
    world.process(shelves.books, ReprocessMode.failed)
    assert found(world, shelves.books)["a.txt"] == {"A third text."}
    assert spent(world, shelves) == before + 2
    assert is_at_rest(world)
