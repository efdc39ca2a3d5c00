"""What an owner gives to somebody else before their account is deleted is not lost with them."""

from collections.abc import Callable

import pytest

from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.pipeline import deletion
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.stores.fltr import claims, deleted
from fltr_pipeline_tests.moments import before
from fltr_pipeline_tests.shelves import Encoded, Shelves, found, is_at_rest, move
from fltr_pipeline_tests.world import World


def give_the_documents_away(world: World, shelves: Shelves) -> None:
    for document_id, dataset_id in world.rows("SELECT id::text, dataset_id::text FROM documents"):
        if dataset_id == shelves.books.id:
            move(world, document_id, shelves.other)


def give_the_dataset_away(world: World, shelves: Shelves) -> None:
    world.change(
        "UPDATE datasets SET user_id = %s WHERE id = %s", shelves.other_payer.user_id, shelves.books.id
    )  # fmt: skip


def leave(world: World, shelves: Shelves) -> None:
    world.change_auth("DELETE FROM users WHERE id = %s", shelves.payer.user_id)


def nothing_was_withdrawn(world: World) -> bool:
    return world.rows("SELECT 1 FROM pipeline.deletions") == []


# --- documents --------------------------------------------------------------------------------------------------------


def test_documents_that_were_moved_before_their_owner_left_follow_as_if_the_owner_were_there(
    world: World, shelves: Shelves, encoded: Encoded
) -> None:
    """Searchable ones, one with a newer upload that failed, and one with a newer upload in work."""
    world.upload(shelves.books, {"c.txt": b"A third text.", "d.txt": b"A fourth text."})
    world.process(shelves.books)
    world.upload(shelves.books, {"b.txt": b""})
    world.process(shelves.books)
    searchable = found(world, shelves.books)
    world.upload(shelves.books, {"c.txt": b"A third text, mended."})
    world.extract(shelves.books)
    give_the_documents_away(world, shelves)
    leave(world, shelves)

    assert not deletion.waiting(world.services), "what is left to the moves is nothing to be withdrawn"
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_moved=4)
    assert nothing_was_withdrawn(world)
    encoded.texts.clear()
    world.process(shelves.other)
    assert encoded.texts == ["A third text, mended."]
    assert found(world, shelves.other) == searchable | {"c.txt": {"A third text, mended."}}
    assert world.statuses(shelves.other) == {
        "a.txt": "ready", "b.txt": "failed", "c.txt": "ready", "d.txt": "ready"
    }  # fmt: skip
    assert world.rows("SELECT 1 FROM pipeline.documents WHERE error_code = 'payer_gone'") == []
    assert world.statement(shelves.other_payer).charged == 2, "what was in work is an upload to the new dataset"
    world.sweep_all()
    assert is_at_rest(world)


def test_a_run_that_comes_before_the_pass_leaves_what_was_moved_to_it(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody pays in the old dataset any more; what is still in it, behind a batch of those, fails as ever."""
    monkeypatch.setenv("FLTR_BATCH_SIZE", "1")
    del world.services
    ids = world.upload(shelves.books, {f"{n}.txt": f"Text number {n}.".encode() for n in range(4)})
    world.extract(shelves.books)
    (stays,) = [name for name, i in ids.items() if i == max(ids.values())]
    for name in ids.keys() - {stays}:
        move(world, ids[name], shelves.other)
    leave(world, shelves)
    world.process(shelves.books)
    assert world.statuses(shelves.books)[stays] == "failed"
    assert set(world.statuses(shelves.other).values()) == {"processing"}

    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_ownerless=2, documents_moved=3)
    world.process(shelves.other)
    assert found(world, shelves.other).keys() == ids.keys() - {stays}
    assert world.statement(shelves.other_payer).charged == 6


def test_a_document_that_was_moved_to_where_nobody_owns_it_either_is_withdrawn_there(
    world: World, shelves: Shelves
) -> None:
    third = world.dataset(world.user(), "kept")
    give_the_documents_away(world, shelves)
    leave(world, shelves)
    world.change("UPDATE datasets SET user_id = %s WHERE id = %s", shelves.payer.user_id, shelves.other.id)
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_moved=2)
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_ownerless=2)
    world.process(shelves.other)
    assert (found(world, shelves.other), found(world, third)) == ({}, {})
    assert is_at_rest(world)


# --- datasets ---------------------------------------------------------------------------------------------------------


def test_a_dataset_that_is_given_away_between_the_looks_at_both_databases_is_not_withdrawn(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hand_over() -> None:
        give_the_dataset_away(world, shelves)
        leave(world, shelves)

    searchable = found(world, shelves.books)
    for look in (world.sweep_all, lambda: deletion.waiting(world.services)):
        with monkeypatch.context() as patch:
            before(patch, 1, Ledger, "existing_users", hand_over)
            look()
        assert nothing_was_withdrawn(world)
        assert found(world, shelves.books) == searchable
        world.change("UPDATE datasets SET user_id = %s WHERE id = %s", shelves.payer.user_id, shelves.books.id)


def test_a_dataset_that_is_given_an_owner_while_it_is_withdrawn_keeps_the_rest(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "_BATCH", 1)
    leave(world, shelves)
    with monkeypatch.context() as patch:
        before(patch, 2, deleted, "withdraw", lambda: give_the_dataset_away(world, shelves))
        assert world.sweep_all(list_keys=False).withdrawn.documents_ownerless == 1
    assert len(found(world, shelves.books)) == 1
    world.sweep_all()
    world.process(shelves.books)
    assert found(world, shelves.books).keys() == shelves.ids.keys()
    assert is_at_rest(world)


@pytest.mark.parametrize("and_then", [lambda *_: None, leave], ids=["the old owner stays", "the old owner leaves"])
def test_what_a_run_claims_behind_the_hand_over_is_the_new_owners(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch, and_then: Callable[[World, Shelves], None]
) -> None:
    """Who pays is asked with each batch, not once for an op of hours."""
    monkeypatch.setenv("FLTR_BATCH_SIZE", "1")
    del world.services
    spent = world.statement(shelves.payer).charged
    world.upload(shelves.books, {"c.txt": b"A third text.", "d.txt": b"A fourth text."})

    def hand_over() -> None:
        give_the_dataset_away(world, shelves)
        and_then(world, shelves)

    before(monkeypatch, 2, claims, "claim", hand_over)
    reports = world.process(shelves.books)
    assert [f for r in reports for f in r.failures] == []
    assert set(world.statuses(shelves.books).values()) == {"ready"}
    assert world.statement(shelves.other_payer).charged == 3
    if and_then is not leave:
        assert world.statement(shelves.payer).charged == spent + 1
