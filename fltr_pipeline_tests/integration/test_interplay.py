"""What falls between the parts: repairs, deletions, quarantine, reprocessing and uploads that meet on one document."""

import hashlib

import pytest

from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reprocess import datasets_to_backfill, requeue
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.sweeper import Report
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.world import World

BREAD = b"Flour, water, salt and yeast; knead, let it rise, bake at 220 degrees."
TREATY = b"The treaty of Westphalia ended the thirty years war in 1648."
NOTHING = Report()


@pytest.fixture
def books(world: World) -> Dataset:
    """A searchable document of a user with 100 credits, alone in Milvus."""
    dataset = world.dataset(world.user())
    world.upload(dataset, {"bread.txt": BREAD})
    world.process(dataset)
    world.sweep_all()  # what other tests left in Milvus
    return dataset


def found(world: World, dataset: Dataset) -> set[str]:
    return {h.place.filename for h in search(world.services, dataset.id, "bread", k=10)}


def lose_all(world: World, dataset: Dataset) -> None:
    world.services.vectors.delete(sorted(world.keys(dataset)))


def paid(world: World, dataset: Dataset) -> int:
    payer = world.services.ledger.payer(dataset.user_id)
    assert payer is not None
    return world.statement(payer).charged


def owner_goes_and_comes_back(world: World, dataset: Dataset) -> None:
    world.change_auth("DELETE FROM users WHERE id = %s", dataset.user_id)
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_ownerless=1)
    world.change_auth("INSERT INTO users (id, name, email, email_verified) VALUES (%s, 'A', 'a@b.org', true)",
                      dataset.user_id)  # fmt: skip
    world.change_auth("INSERT INTO user_credits (user_id, credits) VALUES (%s, 7)", dataset.user_id)


def test_a_fltr_auth_that_knows_none_of_the_owners_withdraws_nothing(world: World, books: Dataset) -> None:
    other = world.dataset(world.user(), "other")
    world.upload(other, {"bread.txt": BREAD})
    world.process(other)
    keys = world.keys(books) | world.keys(other)
    world.change_auth("DELETE FROM users")  # or the URL is another database's
    with pytest.raises(ConfigurationError, match="FLTR_AUTH_DATABASE_URL"):
        world.sweep_all()
    assert world.keys(books) | world.keys(other) == keys
    world.change("DELETE FROM datasets WHERE id = %s", other.id)  # they really are gone, and this says so
    world.change("DELETE FROM datasets WHERE id = %s", books.id)
    assert world.sweep_all().withdrawn == Withdrawn(documents_deleted=2, datasets_deleted=2)
    assert world.sweep_all() == NOTHING


def test_a_restored_document_whose_file_is_gone_fails_and_is_not_queued_at_each_pass(
    world: World, books: Dataset
) -> None:
    owner_goes_and_comes_back(world, books)
    ((document_id,),) = world.rows("SELECT id FROM documents")
    world.change("UPDATE documents SET content = NULL")
    for blob in world.blobs.rglob("*"):
        if blob.is_file() and str(document_id) in str(blob):
            blob.unlink()
    assert world.sweep_all().withdrawn == Withdrawn(documents_restored=1)
    world.process(books)
    assert (found(world, books), world.statuses(books)) == (set(), {"bread.txt": "failed"})
    assert world.sweep_all() == NOTHING


def test_a_reprocessing_of_what_failed_is_charged_also_if_a_repair_had_begun(world: World, books: Dataset) -> None:
    """The repair is free; the newer input, that is tried again while it is under way, is not."""
    world.upload(books, {"bread.txt": b""})
    world.process(books)
    lose_all(world, books)
    assert world.sweep_all().vectors.documents_repaired == 1
    world.stage(Plan(world.services), books)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embed, "perform", lambda *_: [])  # it has its charge, of nothing, and is let go
        world.stage(Embed(world.services), books)
    before = paid(world, books)
    ((document_id,),) = world.rows("SELECT id FROM documents")
    world.services.blobs.put(books.id, document_id, "bread.txt", TREATY)
    world.process(books, ReprocessMode.failed)
    assert world.statuses(books) == {"bread.txt": "ready"}
    fresh = world.dataset(world.user())
    world.upload(fresh, {"treaty.txt": TREATY})
    set_up = world.process(fresh)[0].credits_charged
    assert paid(world, books) - before == paid(world, fresh) - set_up


def test_what_was_extracted_before_the_extractor_changed_is_stale(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment between a document's extraction and its plan."""
    world.upload(books, {"new.txt": TREATY})
    world.extract(books)
    monkeypatch.setattr("fltr_pipeline.text.fingerprint.CLEANER_VERSION", "another")
    del world.services
    world.stage(Plan(world.services), books)
    world.stage(Embed(world.services), books)
    assert requeue(world.services, books.id, ReprocessMode.stale, charge=False) == 2
    world.process(books)
    assert datasets_to_backfill(world.services) == []


def test_lost_vectors_of_a_text_that_is_live_are_made_anew_although_its_file_ended_a_parser_elsewhere(
    world: World, books: Dataset
) -> None:
    world.change(
        "INSERT INTO pipeline.quarantine (source_sha256, tried_with, source_bytes, code, tries, in_force)"
        " VALUES (%s, %s, %s, 'time_limit', 2, true)",
        hashlib.sha256(BREAD).hexdigest(), world.services.tried_with, len(BREAD),
    )  # fmt: skip
    lose_all(world, books)
    assert world.sweep_all().vectors.documents_repaired == 1
    world.process(books)
    assert found(world, books) == {"bread.txt"}
    assert world.sweep_all() == NOTHING


def test_a_repair_that_its_workers_died_at_is_not_queued_at_each_pass(world: World, books: Dataset) -> None:
    world.change(
        "INSERT INTO pipeline.quarantine (source_sha256, tried_with, source_bytes, code, tries, in_force)"
        " VALUES (%s, %s, %s, 'gave_up', 3, true)",
        hashlib.sha256(BREAD).hexdigest(), world.services.tried_with, len(BREAD),
    )  # fmt: skip
    lose_all(world, books)
    world.sweep_all()
    world.process(books)
    assert world.sweep_all() == NOTHING


def test_the_nightly_backfill_has_nothing_to_do_where_the_owner_is_gone(world: World, books: Dataset) -> None:
    world.change_auth("DELETE FROM users WHERE id = %s", books.user_id)
    world.sweep_all(list_keys=False)
    assert datasets_to_backfill(world.services) == []


def test_the_nightly_backfill_leaves_failures_that_nobody_would_pay_for_until_somebody_does(
    world: World, books: Dataset
) -> None:
    world.dataset(world.user(), "kept")
    world.upload(books, {"new.txt": TREATY})
    world.change_auth("DELETE FROM users WHERE id = %s", books.user_id)
    world.process(books)
    assert world.statuses(books) == {"bread.txt": "ready", "new.txt": "failed"}
    for _ in range(2):
        assert datasets_to_backfill(world.services) == []
        world.sweep_all(list_keys=False)
    world.change("UPDATE datasets SET user_id = %s WHERE id = %s", world.user().user_id, books.id)
    assert datasets_to_backfill(world.services) == [books.id]


def test_the_nightly_backfill_does_not_hide_a_fltr_auth_that_knows_none_of_the_owners(
    world: World, books: Dataset
) -> None:
    world.dataset(world.user(), "other")
    world.change_auth("DELETE FROM users")
    assert datasets_to_backfill(world.services) == []
    world.change("UPDATE documents SET status = 'failed'")
    world.change("UPDATE pipeline.documents SET error_code = 'internal_error'")
    with pytest.raises(ConfigurationError, match="FLTR_AUTH_DATABASE_URL"):
        datasets_to_backfill(world.services)


def test_touching_a_document_that_has_lost_its_vectors_is_free(world: World, books: Dataset) -> None:
    """The same bytes: what is made anew is what we lost."""
    before = paid(world, books)
    lose_all(world, books)
    world.sweep_all()
    world.upload(books, {"bread.txt": BREAD})
    world.process(books)
    assert (found(world, books), paid(world, books)) == ({"bread.txt"}, before)


def test_a_document_that_moves_to_another_dataset_is_found_there(world: World, books: Dataset) -> None:
    payer = world.services.ledger.payer(books.user_id)
    assert payer is not None
    other = world.dataset(payer, "other")
    ((document_id,),) = world.rows("SELECT id FROM documents")
    world.services.blobs.put(other.id, document_id, "bread.txt", BREAD)
    world.change("UPDATE documents SET dataset_id = %s, status = 'uploaded', updated_at = clock_timestamp()", other.id)
    world.process(other)
    assert (found(world, books), found(world, other)) == (set(), {"bread.txt"})
    assert world.sweep_all() == NOTHING
