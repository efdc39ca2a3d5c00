"""Deleted documents, datasets and users: out of search at once, out of Milvus after a pass, with a receipt."""

import os
import threading
from collections import Counter
from collections.abc import Callable

import psycopg
import pytest

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.errors import ConfigurationError, StoreUnavailable
from fltr_pipeline.models import Stage
from fltr_pipeline.pipeline import deletion, expiry, sweeper
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare, compare_all
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.sweeper import Report
from fltr_pipeline.stores.blobs import BlobStore
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, deleted, leases, manifest
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.moments import Killed
from fltr_pipeline_tests.world import World

TREATY = b"The treaty of Westphalia ended the thirty years war in 1648."
BREAD = b"Flour, water, salt and yeast; knead, let it rise, bake at 220 degrees."
NOTHING = Report()
PIPELINE = ("documents", "generations", "chunks", "retired_keys", "upload_keys")


@pytest.fixture
def books(world: World) -> Dataset:
    """Two searchable documents of a user with 100 credits, alone in Milvus."""
    dataset = world.dataset(world.user())
    world.upload(dataset, {"treaty.txt": TREATY, "bread.txt": BREAD})
    world.process(dataset)
    world.sweep_all()  # what other tests left in Milvus
    return dataset


def found(world: World, dataset: Dataset) -> set[str]:
    return {h.place.filename for h in search(world.services, dataset.id, "bread", k=10)}


def document(world: World, filename: str) -> str:
    ((found_id,),) = world.rows("SELECT id FROM documents WHERE filename = %s", filename)
    return str(found_id)


def left(world: World, document_id: str) -> set[str]:
    """Tables of `pipeline` that still have rows of the document."""
    return {t for t in PIPELINE if world.rows(f"SELECT 1 FROM pipeline.{t} WHERE document_id = %s", document_id)}


def unverified(world: World) -> int:
    ((n,),) = world.rows("SELECT count(*) FROM pipeline.deletions WHERE verified_at IS NULL")
    return int(n)


# --- documents --------------------------------------------------------------------------------------------------------


def test_a_deleted_document_is_out_of_search_at_once_and_out_of_milvus_after_a_pass(
    world: World, books: Dataset
) -> None:
    treaty = document(world, "treaty.txt")
    world.change("DELETE FROM documents WHERE id = %s", treaty)
    assert found(world, books) == {"bread.txt"}
    assert len(world.keys(books)) == 2
    assert {i: d.deleted for i, d in compare_all(world.services).items()} == {books.id: 1}

    report = world.sweep_all(list_keys=False)
    assert report.withdrawn == Withdrawn(documents_deleted=1)
    assert report.vectors.vectors_retired == 1
    (receipt,) = report.receipts
    assert (receipt.document_id, receipt.dataset_id, receipt.cause, receipt.vectors) == (
        treaty, books.id, "document", 1
    )  # fmt: skip
    assert world.rows("SELECT document_id, vectors, verified_at FROM pipeline.deletions") == [
        (treaty, 1, receipt.verified_at)
    ]
    assert len(world.keys(books)) == 1
    assert left(world, treaty) == set()
    assert found(world, books) == {"bread.txt"}
    assert compare_all(world.services) == {}
    assert world.sweep_all() == NOTHING
    ops = world.rows("SELECT op, state FROM pipeline.charges WHERE subject_id = %s ORDER BY op", treaty)
    assert ops == [(f"document_{op}", "settled") for op in ("embed", "extract", "plan")]


def test_a_document_that_was_never_claimed_leaves_no_key_of_its_upload(world: World) -> None:
    dataset = world.dataset(world.user())
    ids = world.upload(dataset, {"a.txt": TREATY, "b.txt": BREAD})
    for document_id in ids.values():
        world.change("INSERT INTO pipeline.upload_keys VALUES (%s, repeat('1', 64))", document_id)
    world.change("DELETE FROM documents WHERE id = %s", ids["a.txt"])
    world.sweep_all(list_keys=False)
    assert world.rows("SELECT document_id FROM pipeline.upload_keys") == [(ids["b.txt"],)]


@pytest.mark.parametrize("stage", ["extracted", "planned", "in dead hands"])
def test_work_in_flight_for_a_deleted_document_stops_and_its_hold_comes_back(world: World, stage: str) -> None:
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {"a.txt": TREATY})
    world.extract(dataset)
    if stage != "extracted":
        world.stage(Plan(world.services), dataset)
    if stage == "in dead hands":
        with transaction(world.services.fltr) as tx:
            (claim,) = claims.claim(
                tx, dataset_id=dataset.id, stage=Stage.EMBED, run_id="dead", limit=9, lease_seconds=600
            )
        work = Embed(world.services)
        assert work.perform([claim], {})
        with transaction(world.services.fltr) as tx:
            leases.expire_runs(tx, ["dead"])
    world.change("DELETE FROM documents WHERE id = %s", ids["a.txt"])
    report = world.sweep_all()
    assert report.withdrawn == Withdrawn(documents_deleted=1)
    assert [(r.document_id, r.vectors) for r in report.receipts] == [(ids["a.txt"], int(stage == "in dead hands"))]
    assert left(world, ids["a.txt"]) == world.keys(dataset) == set()
    statement = world.statement(payer)
    assert (statement.charged, statement.held) == (1, 0), "its extraction was done and is paid for"
    assert [r.claimed for r in world.process(dataset)] == [1, 0, 0, 0]
    assert world.sweep_all() == NOTHING


def test_a_document_that_somebody_works_on_is_left_to_them_and_then_goes(world: World) -> None:
    dataset = world.dataset(world.user())
    ids = world.upload(dataset, {"a.txt": TREATY})
    world.extract(dataset)
    world.stage(Plan(world.services), dataset)
    work, passes = Embed(world.services), []
    insert = VectorStore.insert

    def deleted_meanwhile(self: VectorStore, rows: object) -> None:
        world.change("DELETE FROM documents WHERE id = %s", ids["a.txt"])
        passes.append(world.sweep_all())
        insert(self, rows)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VectorStore, "insert", deleted_meanwhile)
        report = world.stage(work, dataset)
    assert (report.done, report.lost) == (0, 1)
    assert [p.withdrawn for p in passes] == [Withdrawn()]
    assert world.sweep_all().withdrawn == Withdrawn(documents_deleted=1)
    assert (world.keys(dataset), unverified(world)) == (set(), 0)
    assert world.sweep_all() == NOTHING


def test_what_comes_back_under_its_id_is_new_work_with_new_keys(world: World, books: Dataset) -> None:
    treaty = document(world, "treaty.txt")
    before = world.keys(books)
    charged = world.statement(_payer(world, books)).charged
    world.change("DELETE FROM documents WHERE id = %s", treaty)
    world.sweep_all(list_keys=False)
    world.change(
        "INSERT INTO documents (id, dataset_id, filename, status, created_at, updated_at)"
        " VALUES (%s, %s, 'treaty.txt', 'uploaded', now(), now())",
        treaty, books.id,
    )  # fmt: skip
    world.process(books)
    assert found(world, books) == {"treaty.txt", "bread.txt"}
    assert len(world.keys(books) - before) == 1
    assert world.rows("SELECT generation FROM pipeline.documents WHERE document_id = %s", treaty) == [(2,)]
    assert world.statement(_payer(world, books)).charged == charged + 2
    assert compare(world.services, books.id).none


def _payer(world: World, dataset: Dataset) -> Payer:
    payer = world.services.ledger.payer(dataset.user_id)
    assert payer is not None
    return payer


# --- datasets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cascade", [True, False])
def test_a_deleted_dataset_is_out_of_search_at_once_and_out_of_milvus_after_a_pass(
    world: World, books: Dataset, cascade: bool
) -> None:
    world.upload(books, {"new.txt": TREATY})
    if not cascade:
        world.change("ALTER TABLE documents DROP CONSTRAINT documents_dataset_id_datasets_id_fk")
    world.change("DELETE FROM datasets WHERE id = %s", books.id)
    assert search(world.services, books.id, "bread") == []
    report = world.sweep_all(list_keys=False)
    assert report.withdrawn == Withdrawn(documents_deleted=2, datasets_deleted=1)
    assert Counter((r.dataset_id, r.cause, r.vectors) for r in report.receipts) == {(books.id, "dataset", 1): 2}
    assert world.keys(books) == set()
    for table in (*PIPELINE, "datasets"):
        assert world.rows(f"SELECT count(*) FROM pipeline.{table}") == [(0,)]
    assert world.sweep_all() == NOTHING


def test_many_documents_go_page_by_page_and_batch_by_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "PAGE", 4)
    monkeypatch.setattr(deletion, "_BATCH", 2)
    dataset = world.dataset(world.user())
    ids = world.upload(dataset, {f"{n}.txt": TREATY + bytes([65 + n]) for n in range(11)})
    world.process(dataset)
    gone = sorted(ids.values())[1:10]
    world.change("DELETE FROM documents WHERE id = ANY(%s)", gone)
    report = world.sweep_all(list_keys=False)
    assert report.withdrawn.documents_deleted == 9
    assert {r.document_id for r in report.receipts} == set(gone)
    assert len(world.keys(dataset)) == 2
    assert compare(world.services, dataset.id).none


# --- users ------------------------------------------------------------------------------------------------------------


def test_a_deleted_users_datasets_are_out_of_search_at_once_and_out_of_milvus_after_a_pass(
    world: World, books: Dataset
) -> None:
    kept = world.dataset(world.user(), "of another user")
    world.upload(kept, {"other.txt": BREAD})
    world.process(kept)
    world.upload(books, {"new.txt": TREATY, "bread.txt": BREAD + b" For forty minutes."})
    world.extract(books)
    world.change("UPDATE documents SET status = 'awaiting_credits' WHERE filename = 'new.txt'")
    world.change_auth("DELETE FROM users WHERE id = %s", books.user_id)
    assert search(world.services, books.id, "bread") == []

    report = world.sweep_all(list_keys=False)
    assert report.withdrawn == Withdrawn(documents_ownerless=3)
    assert Counter((r.dataset_id, r.cause) for r in report.receipts) == {(books.id, "owner"): 3}
    assert sum(r.vectors for r in report.receipts) == 2
    assert world.keys(books) == set()
    assert found(world, kept) == {"other.txt"}
    assert world.statuses(books) == {"treaty.txt": "ready", "bread.txt": "failed", "new.txt": "failed"}
    assert {code for (code,) in world.rows(
        "SELECT error_code FROM pipeline.documents WHERE dataset_id = %s", books.id
    )} == {"payer_gone"}  # fmt: skip
    open_jobs = "SELECT count(*) FROM processing_jobs WHERE status IN ('queued', 'running', 'indexed')"
    assert world.rows(open_jobs) == [(0,)]
    assert world.rows("SELECT count(*) FROM pipeline.charges WHERE state = 'open'") == [(0,)]
    assert world.sweep_all() == NOTHING
    world.change("DELETE FROM datasets WHERE id = %s", books.id)
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_deleted=3, datasets_deleted=1)
    assert world.sweep_all() == NOTHING


def test_a_user_who_comes_back_finds_the_documents_again_free_of_charge(world: World, books: Dataset) -> None:
    (name, email), *_ = world.auth_rows("SELECT name, email FROM users WHERE id = %s", books.user_id)
    world.change_auth("DELETE FROM users WHERE id = %s", books.user_id)
    world.sweep_all(list_keys=False)
    world.change_auth(
        "INSERT INTO users (id, name, email, email_verified) VALUES (%s, %s, %s, true)", books.user_id, name, email
    )
    world.change_auth("INSERT INTO user_credits (user_id, credits) VALUES (%s, 7)", books.user_id)
    assert world.sweep_all().withdrawn == Withdrawn(documents_restored=2)
    assert world.sweep_all() == NOTHING
    world.process(books)
    assert found(world, books) == {"treaty.txt", "bread.txt"}
    assert world.statement(_payer(world, books)).available == 7
    assert compare(world.services, books.id).none
    assert world.sweep_all() == NOTHING


# --- passes that die, and several at once -----------------------------------------------------------------------------


def _dying(call: Callable[..., object], *, after: bool) -> Callable[..., object]:
    def dies(*arguments: object, **named: object) -> object:
        if after:
            call(*arguments, **named)
        raise Killed

    return dies


WRITES = [
    (deleted, "forget"), (deleted, "forget_datasets"), (expiry, "sweep"), (VectorStore, "delete_listed"),
    (VectorStore, "datasets_of"), (manifest, "forget_retired"), (deleted, "verify"),
]  # fmt: skip
"""Of a pass, in their order."""


def test_a_pass_that_dies_anywhere_is_finished_by_the_next_and_each_receipt_is_given_once(
    world: World, books: Dataset
) -> None:
    """One pass after the other dies, each a write later than the one before."""
    world.change("DELETE FROM datasets WHERE id = %s", books.id)
    for owner, name in WRITES:
        for after in (False, True):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, _dying(getattr(owner, name), after=after))
                with pytest.raises(Killed):
                    world.sweep_all(list_keys=False)
            assert search(world.services, books.id, "bread") == []
    assert (world.keys(books), unverified(world)) == (set(), 2)
    assert len(world.sweep_all(list_keys=False).receipts) == 2
    assert world.rows("SELECT vectors FROM pipeline.deletions") == [(1,), (1,)]
    assert world.sweep_all() == NOTHING


def test_passes_at_the_same_time_share_the_work(world: World, books: Dataset) -> None:
    world.upload(books, {f"{n}.txt": TREATY + bytes([65 + n]) for n in range(8)})
    world.process(books)
    world.change("DELETE FROM datasets WHERE id = %s", books.id)
    reports: list[Report] = []
    threads = [threading.Thread(target=lambda: reports.append(world.sweep_all())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reports.append(world.sweep_all())
    assert sum(r.withdrawn.documents_deleted for r in reports) == 10
    receipts = [receipt.document_id for r in reports for receipt in r.receipts]
    assert len(receipts) == len(set(receipts)) == 10
    assert world.keys(books) == set()
    assert world.sweep_all() == NOTHING


def test_without_milvus_the_books_are_closed_all_the_same_and_no_receipt_is_given(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change("DELETE FROM documents WHERE dataset_id = %s", books.id)

    def down(*_: object, **__: object) -> None:
        raise StoreUnavailable("Milvus does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(VectorStore, "delete_listed", down)
        with pytest.raises(StoreUnavailable):
            world.sweep_all()
    assert world.rows("SELECT count(*) FROM pipeline.documents") == [(0,)]
    assert unverified(world) == 2
    assert len(world.sweep_all().receipts) == 2


def test_a_pass_is_not_ended_by_a_blob_store_that_cannot_be_opened(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise ConfigurationError("there is no driver for it here")

    world.change("DELETE FROM documents WHERE id = %s", document(world, "treaty.txt"))
    monkeypatch.setattr(BlobStore, "remove_unfinished", cannot)
    assert len(world.sweep_all().receipts) == 1


@pytest.mark.parametrize("refused", [False, True])
def test_a_full_pass_removes_what_dead_writers_left_among_the_files(
    world: World, books: Dataset, caplog: pytest.LogCaptureFixture, refused: bool
) -> None:
    folder = world.blobs / "~unfinished"
    leftover = folder / "dead"
    leftover.write_bytes(b"half a fi")
    os.utime(leftover, (0, 0))
    assert (world.sweep_all(list_keys=False), leftover.exists()) == (NOTHING, True)
    if refused:
        folder.rename(world.blobs / "elsewhere")
        folder.write_bytes(b"not a folder")
    assert world.sweep_all() == NOTHING
    assert not leftover.exists()
    assert ("can't be removed" in caplog.text) is refused


# --- the probe --------------------------------------------------------------------------------------------------------


@pytest.fixture
def probe(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], sweeper.Probe]:
    monkeypatch.setattr(deletion, "PAGE", 1)
    monkeypatch.setattr(sweeper, "_LOOK_SECONDS", 0.0)
    return lambda after: sweeper.probe(world.services, after)


def test_the_probe_looks_at_all_documents_in_turn(
    world: World, books: Dataset, probe: Callable[[str], sweeper.Probe]
) -> None:
    first, second = sorted([document(world, "treaty.txt"), document(world, "bread.txt")])
    world.change("DELETE FROM documents WHERE id = %s", second)
    assert probe("") == sweeper.Probe("", first, 1)
    assert "deleted" in probe(first).found
    assert probe(second) == sweeper.Probe("", "", 0)
    world.sweep_all(list_keys=False, after=probe(first).next)
    assert probe(first) == sweeper.Probe("", "", 0)


def test_the_probe_looks_on_while_there_is_time(
    world: World, books: Dataset, probe: Callable[[str], sweeper.Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "_LOOK_SECONDS", 60.0)
    assert probe("") == sweeper.Probe("", "", 2)


@pytest.mark.parametrize("what", ["dataset", "user", "retired key"])
def test_the_probe_sees_what_waits_for_a_pass_and_nothing_behind_it(
    world: World, books: Dataset, probe: Callable[[str], sweeper.Probe], what: str
) -> None:
    assert probe("~").found == ""
    if what == "dataset":
        world.change("DELETE FROM datasets WHERE id = %s", books.id)
    elif what == "user":
        world.change_auth("DELETE FROM users WHERE id = %s", books.user_id)
    else:
        world.change("INSERT INTO pipeline.retired_keys VALUES ('k', %s, 'x', now() - interval '1 hour')", books.id)
    assert probe("~").found
    world.sweep_all(list_keys=False)
    assert probe("~").found == ""


def test_a_session_of_the_application_that_holds_a_row_stops_no_pass(world: World, books: Dataset) -> None:
    bread = document(world, "bread.txt")
    world.change("DELETE FROM documents WHERE filename = 'treaty.txt'")
    with psycopg.connect(world.fltr_admin) as other:
        other.execute("SELECT 1 FROM documents WHERE id = %s FOR UPDATE", (bread,))
        assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_deleted=1)
