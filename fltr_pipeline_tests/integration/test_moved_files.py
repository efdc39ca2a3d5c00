"""Files of documents that were moved to another dataset: the last upload counts, and what can't be copied waits."""

import logging
import os
from pathlib import Path

import pytest

from fltr_pipeline.errors import Inaccessible, StoreUnavailable
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline import moves, sweeper, uploads
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.pipeline.reprocess import remaining
from fltr_pipeline.stores.blobs import Blob, BlobStore
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets, moved
from fltr_pipeline_tests.shelves import TEXTS, Shelves, found, is_at_rest, move
from fltr_pipeline_tests.world import World

NEW = b"What the customer uploaded last."


@pytest.mark.parametrize("seen", ["by the run", "by a pass", "by the run, with an older one in a worker's hands"])
def test_an_upload_that_is_moved_before_its_claim_is_what_is_published(
    world: World, shelves: Shelves, seen: str
) -> None:
    spent = world.statement(shelves.payer).charged
    if "older" in seen:
        world.upload(shelves.books, {"a.txt": b"An upload that nobody will finish."})
        world.extract(shelves.books)
        world.change("UPDATE pipeline.documents SET lease_until = now() + interval '1 h' WHERE stage IS NOT NULL")
    world.upload(shelves.books, {"a.txt": NEW})
    move(world, shelves.ids["a.txt"], shelves.other)
    if seen == "by a pass":
        assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    world.process(shelves.other)
    assert found(world, shelves.other) == {"a.txt": {NEW.decode()}}
    assert found(world, shelves.books).keys() == {"b.txt"}
    assert world.statement(shelves.other_payer).charged == 2
    world.sweep_all()
    assert (world.statement(shelves.payer).charged, world.statement(shelves.payer).held) == (spent, 0)
    assert is_at_rest(world)


def test_a_failed_document_that_is_tried_again_where_it_was_moved_to_is_read_from_its_file(
    world: World, shelves: Shelves
) -> None:
    world.upload(shelves.books, {"a.txt": b""})
    world.process(shelves.books)
    assert world.statuses(shelves.books)["a.txt"] == "failed"
    world.services.blobs.put(shelves.books.id, shelves.ids["a.txt"], "a.txt", NEW)
    move(world, shelves.ids["a.txt"], shelves.other)
    world.process(shelves.other, ReprocessMode.failed)
    assert found(world, shelves.other) == {"a.txt": {NEW.decode()}}


@pytest.mark.parametrize("second", ["processed", "parked", "not claimed"])
def test_moving_back_never_brings_old_bytes_back(world: World, shelves: Shelves, second: str) -> None:
    move(world, shelves.ids["a.txt"], shelves.other)
    world.sweep_all(list_keys=False)
    world.process(shelves.other)
    world.upload(shelves.other, {"a.txt": NEW})
    if second == "processed":
        world.process(shelves.other)
    elif second == "parked":
        world.extract(shelves.other)
    for dataset in (shelves.books, shelves.other, shelves.books):
        move(world, shelves.ids["a.txt"], dataset)
        world.sweep_all(list_keys=False)
    world.process(shelves.books)
    world.process(shelves.books, ReprocessMode.all)
    assert found(world, shelves.books)["a.txt"] == {NEW.decode()}


@pytest.mark.parametrize("name", ["a.txt", "another name.txt"])
def test_a_copy_never_stands_before_an_upload_that_came_while_it_was_made(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    document_id, copy = shelves.ids["a.txt"], BlobStore.copy
    move(world, document_id, shelves.other)

    def after_an_upload(self: BlobStore, blob: Blob, dataset_id: str) -> str:
        self.put(dataset_id, document_id, name, NEW)
        return copy(self, blob, dataset_id)

    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "copy", after_an_upload)
        assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    world.change("UPDATE documents SET status = 'uploaded', updated_at = clock_timestamp() WHERE id = %s", document_id)
    world.process(shelves.other)
    assert found(world, shelves.other) == {"a.txt": {NEW.decode()}}


def test_a_file_whose_document_is_moved_while_it_is_uploaded_goes_where_the_document_is(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(NEW)
    put = BlobStore.put

    def then_moved(self: BlobStore, dataset_id: str, document_id: str, filename: str, data: bytes | Path) -> str:
        key = put(self, dataset_id, document_id, filename, data)
        move(world, shelves.ids["a.txt"], shelves.other)
        world.sweep_all(list_keys=False)
        return key

    monkeypatch.setattr(BlobStore, "put", then_moved)
    (uploaded,) = uploads.upload(world.services, shelves.books, [("a.txt", tmp_path / "a.txt")])
    assert uploaded.replaced
    world.process(shelves.other)
    assert found(world, shelves.other) == {"a.txt": {NEW.decode()}}


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Documents whose files can't be copied."""
    ids: set[str] = set()
    copy = BlobStore.copy

    def refusing(self: BlobStore, blob: Blob, dataset_id: str) -> str:
        if blob.key.split("/")[1] in ids:
            raise StoreUnavailable("the blob store failed: 403")
        return copy(self, blob, dataset_id)

    monkeypatch.setattr(BlobStore, "copy", refusing)
    return ids


def test_a_file_that_cannot_be_copied_concerns_its_document_alone_and_is_tried_again(
    world: World, shelves: Shelves, locked: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    ids = world.upload(shelves.books, {"c.txt": NEW, "gone.txt": NEW})
    world.extract(shelves.books)
    dead = "run_id = 'dead', lease_until = now() - interval '1 s'"
    world.change(f"UPDATE pipeline.documents SET {dead} WHERE document_id = %s", ids["c.txt"])
    world.change("DELETE FROM documents WHERE id = %s", ids["gone.txt"])
    for document_id in (shelves.ids["a.txt"], shelves.ids["b.txt"]):
        move(world, document_id, shelves.other)
    locked.add(shelves.ids["a.txt"])
    with caplog.at_level(logging.WARNING):
        report = world.sweep_all()
    assert (report.withdrawn.documents_moved, report.withdrawn.files_not_copied) == (1, 1)
    assert (report.withdrawn.documents_deleted, report.swept.documents) == (1, 1)
    assert f"document {shelves.ids['a.txt']} was moved from dataset {shelves.books.id}" in caplog.text
    assert "403" in caplog.text
    assert sweeper.probe(world.services, "").found == "", "not each minute"
    assert world.sweep_all(list_keys=False) == sweeper.Report()
    assert world.sweep_all().withdrawn.files_not_copied == 1, "by hand and by night, at once"
    locked.clear()
    world.change("UPDATE pipeline.documents SET retry_at = now() - interval '1 s' WHERE retry_at IS NOT NULL")
    assert "moved" in sweeper.probe(world.services, "").found
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    world.process(shelves.other)
    assert found(world, shelves.other).keys() == TEXTS.keys()


def test_where_the_blob_store_does_not_answer_a_pass_waits_for_one_batch_only(
    world: World, shelves: Shelves, locked: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "_BATCH", 1)
    monkeypatch.setattr(moves, "_PATIENCE_SECONDS", -1.0)
    first, second = sorted(shelves.ids.values())
    for document_id in (first, second):
        move(world, document_id, shelves.other)
    locked.add(first)
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(files_not_copied=2)
    assert sweeper.probe(world.services, "").found == "", "no pass is launched for the rest, until it is due"
    assert world.sweep_all(list_keys=False) == sweeper.Report()
    told = "SELECT error_code, retries FROM pipeline.documents WHERE document_id = %s"
    assert world.rows(told, second) == [(None, 0)], "it was not asked for"
    world.change("UPDATE pipeline.documents SET retry_at = now() WHERE document_id = %s", second)
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_moved=1)
    assert world.rows("SELECT dataset_id FROM pipeline.documents WHERE document_id = %s", second) == [
        (shelves.other.id,)
    ]


def test_an_upload_whose_file_cannot_be_copied_waits_and_stops_no_other(
    world: World, shelves: Shelves, locked: set[str]
) -> None:
    world.upload(shelves.books, {"a.txt": NEW})
    move(world, shelves.ids["a.txt"], shelves.other)
    locked.add(shelves.ids["a.txt"])
    world.upload(shelves.other, {"c.txt": NEW})
    world.process(shelves.other)
    assert world.statuses(shelves.other) == {"a.txt": "uploaded", "c.txt": "ready"}
    assert backlog(world) == {}, "no run is launched for it, until it is due"
    assert remaining(world.services, shelves.other.id) == 1
    locked.clear()
    world.change("UPDATE pipeline.documents SET retry_at = now() - interval '1 s' WHERE retry_at IS NOT NULL")
    assert backlog(world) == {shelves.other.id: 1}
    world.process(shelves.other)
    assert found(world, shelves.other) == {"a.txt": {NEW.decode()}, "c.txt": {NEW.decode()}}


def backlog(world: World) -> dict[str, int]:
    """What the sensor launches runs for."""
    with transaction(world.services.fltr) as tx:
        return {b.dataset_id: b.waiting for b in datasets.backlog(tx)}


def due(world: World) -> None:
    world.change("UPDATE pipeline.documents SET retry_at = now() - interval '1 s' WHERE retry_at IS NOT NULL")


@pytest.mark.parametrize("status", ["ready", "uploaded"])
def test_what_is_refused_too_often_follows_without_its_file(
    world: World, shelves: Shelves, locked: set[str], monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(Inaccessible, "tries", 3)
    document_id = shelves.ids["a.txt"]
    if status == "uploaded":
        world.upload(shelves.books, {"a.txt": NEW})
        world.services.blobs.put(shelves.other.id, document_id, "an old one.txt", b"Old bytes.")
        path = world.blobs / shelves.other.id / document_id / "an old one.txt"
        os.utime(path, (1_000_000_000, 1_000_000_000))
    move(world, document_id, shelves.other)
    locked.add(document_id)
    for _ in range(2):
        assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(files_not_copied=1)
        due(world)
    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "check", lambda _: refuse())
        assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(files_not_copied=1), "it does not answer at all"
    due(world)
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_moved=1)
    world.process(shelves.other)
    if status == "ready":
        assert found(world, shelves.other).keys() == {"a.txt"}
    else:
        assert world.statuses(shelves.other) == {"a.txt": "failed"}
        ((code, message),) = world.rows(
            "SELECT error_code, error_message FROM pipeline.documents WHERE document_id = %s", document_id
        )
        assert code == "file_not_copied"
        assert shelves.books.id in message
        world.upload(shelves.other, {"a.txt": NEW})
        world.process(shelves.other)
        assert found(world, shelves.other) == {"a.txt": {NEW.decode()}}
    world.sweep_all()
    assert is_at_rest(world)


@pytest.mark.parametrize("readable_again", [True, False])
def test_a_failure_that_another_night_may_mend_is_not_forgotten_for_a_file_that_was_refused_meanwhile(
    world: World, shelves: Shelves, locked: set[str], monkeypatch: pytest.MonkeyPatch, *, readable_again: bool
) -> None:
    monkeypatch.setattr(Inaccessible, "tries", 3)
    document_id = shelves.ids["a.txt"]
    world.change("UPDATE documents SET status = 'failed' WHERE id = %s", document_id)
    world.change(
        "UPDATE pipeline.documents SET error_code = 'time_limit', error_at = now() WHERE document_id = %s", document_id
    )
    move(world, document_id, shelves.other)
    locked.add(document_id)
    for _ in range(2):
        assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(files_not_copied=1)
        due(world)
    if readable_again:
        locked.clear()
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(documents_moved=1)
    world.process(shelves.other)
    assert found(world, shelves.other).keys() == {"a.txt"}
    assert world.statuses(shelves.other)["a.txt"] == "failed"
    ((code,),) = world.rows("SELECT error_code FROM pipeline.documents WHERE document_id = %s", document_id)
    assert code == ("time_limit" if readable_again else "file_not_copied")


def refuse() -> None:
    raise StoreUnavailable("no answer")


@pytest.mark.parametrize("newer", ["a copy", "an upload to the new dataset"])
def test_a_refused_file_does_not_hold_what_was_uploaded_anew(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch, newer: str
) -> None:
    document_id, locate = shelves.ids["a.txt"], BlobStore.locate
    original = locate(world.services.blobs, shelves.books.id, document_id)
    assert original
    move(world, document_id, shelves.other)
    if newer == "a copy":
        world.services.blobs.copy(original, shelves.other.id)
        world.change(
            "UPDATE documents SET status = 'uploaded', updated_at = clock_timestamp() WHERE id = %s", document_id
        )
    else:
        world.upload(shelves.other, {"a.txt": NEW})

    def refusing(self: BlobStore, dataset_id: str, of: str) -> Blob | None:
        if dataset_id == shelves.books.id:
            refuse()
        return locate(self, dataset_id, of)

    monkeypatch.setattr(BlobStore, "locate", refusing)
    world.process(shelves.other)
    expected = {} if newer == "a copy" else {"a.txt": {NEW.decode()}}
    assert found(world, shelves.other) == expected


def test_a_late_put_off_does_not_delay_what_was_followed(world: World, shelves: Shelves) -> None:
    move(world, shelves.ids["a.txt"], shelves.other)
    late = moves.found(world.services, [shelves.ids["a.txt"]])
    world.sweep_all(list_keys=False)
    with transaction(world.services.fltr) as tx:
        moved.put_off(tx, dict.fromkeys(late, "403"), seconds=300)
    assert world.rows("SELECT 1 FROM pipeline.documents WHERE retry_at IS NOT NULL OR error_code IS NOT NULL") == []
