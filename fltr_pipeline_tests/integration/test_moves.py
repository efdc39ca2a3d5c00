"""A document in another dataset, by one UPDATE of the application: found there, for nothing, with its file."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline import deletion, moves, sweeper, uploads
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.reconcile import Drift, compare_all
from fltr_pipeline.pipeline.reprocess import remaining
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.stage import Result
from fltr_pipeline.stores.blobs import Blob, BlobStore
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests.money import add_key
from fltr_pipeline_tests.world import World

TEXTS = {name: f"The text of {name}. " + f"Every word of {name} counts. " * 60 for name in ("a.txt", "b.txt")}


@dataclass
class Encoded:
    """Texts that the model was asked for."""

    texts: list[str] = field(default_factory=list)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Encoded:
    """The model, cheaply, and what it was asked for."""
    asked = Encoded()

    def encode(model: EmbeddingModel, texts: Sequence[str]) -> list[list[float]]:
        asked.texts += texts
        return [[1.0, len(text) / 1000] + [0.0] * (model.dimension - 2) for text in texts]

    monkeypatch.setattr(EmbeddingModel, "encode", encode)
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "60")
    return asked


@dataclass(frozen=True)
class Shelves:
    """A dataset with two searchable documents, and an empty one of somebody else."""

    payer: Payer
    books: Dataset
    other_payer: Payer
    other: Dataset
    ids: dict[str, str]


@pytest.fixture
def shelves(world: World, encoded: Encoded) -> Shelves:
    payer, other = world.user(50), world.user(50)
    books = world.dataset(payer)
    ids = world.upload(books, {name: text.encode() for name, text in TEXTS.items()})
    world.process(books)
    world.sweep_all()  # what other tests left in Milvus
    encoded.texts.clear()
    return Shelves(payer, books, other, world.dataset(other, "other"), ids)


def move(world: World, document_id: str, dataset: Dataset) -> None:
    world.change("UPDATE documents SET dataset_id = %s WHERE id = %s", dataset.id, document_id)


def found(world: World, dataset: Dataset) -> dict[str, set[str]]:
    """What search finds: filename → texts of chunks."""
    hits: dict[str, set[str]] = {}
    for hit in search(world.services, dataset.id, "words", k=100):
        hits.setdefault(hit.place.filename, set()).add(hit.place.text)
    return hits


def is_at_rest(world: World) -> bool:
    return compare_all(world.services) == {} and world.sweep_all() == sweeper.Report()


def test_a_moved_document_is_found_in_its_new_dataset_without_embedding_or_charge(
    world: World, shelves: Shelves, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, spent = found(world, shelves.books), world.statement(shelves.payer).charged
    vectors = {v["text"]: v["vector"] for v in stored(world, shelves.books)}
    move(world, shelves.ids["a.txt"], shelves.other)
    assert found(world, shelves.books).keys() == {"b.txt"}
    assert found(world, shelves.other) == {}
    monkeypatch.setattr(deletion, "PAGE", 1)
    monkeypatch.setattr(sweeper, "_LOOK_SECONDS", 0.0)
    probes = [sweeper.probe(world.services, after) for after in ("", min(shelves.ids.values()))]
    assert sorted(p.found for p in probes) == ["", "a document was moved to another dataset"]
    (where,) = (p.next for p in probes if p.found)
    assert compare_all(world.services)[shelves.other.id] == Drift(0, frozenset(), frozenset(), moved=1)

    assert world.sweep_all(list_keys=False, after=where).withdrawn.documents_moved == 1
    assert {sweeper.probe(world.services, after).found for after in ("", min(shelves.ids.values()))} == {""}
    encoded.texts.clear()
    world.process(shelves.other)
    assert encoded.texts == []
    assert found(world, shelves.other) == {"a.txt": before["a.txt"]}
    assert found(world, shelves.books) == {"b.txt": before["b.txt"]}
    moved = {v["text"]: v["vector"] for v in stored(world, shelves.other)}
    assert moved.keys() == before["a.txt"]
    assert all(vectors[text] == vector for text, vector in moved.items())
    assert world.keys(shelves.books) == {v["key"] for v in stored(world, shelves.books)}
    assert world.statement(shelves.payer).charged == spent
    assert world.statement(shelves.other_payer).charged == 0
    assert is_at_rest(world)

    # Its file came along: it can be processed there, with all of the other dataset's files gone.
    shutil.rmtree(world.blobs / shelves.books.id / shelves.ids["a.txt"])
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "40")
    del world.services
    world.process(shelves.other, ReprocessMode.all)
    assert world.statuses(shelves.other) == {"a.txt": "ready"}
    assert is_at_rest(world)


def stored(world: World, dataset: Dataset) -> list[dict[str, object]]:
    """Rows in Milvus: key, text, vector."""
    from pymilvus import MilvusClient

    client = MilvusClient(uri=world.milvus_uri)
    try:
        rows = client.query(
            world.services.vectors.collection, filter=f'dataset_id == "{dataset.id}"',
            output_fields=["key", "text", "vector"], consistency_level="Strong",
        )  # fmt: skip
    finally:
        client.close()
    return [{**row, "vector": [float(x) for x in row["vector"]]} for row in rows]


def test_what_milvus_has_lost_of_a_moved_document_is_made_anew_and_free(
    world: World, shelves: Shelves, encoded: Encoded
) -> None:
    lost = stored(world, shelves.books)[0]
    world.services.vectors.delete([str(lost["key"])])
    for document_id in shelves.ids.values():
        move(world, document_id, shelves.other)
    world.sweep_all(list_keys=False)
    world.process(shelves.other)
    assert encoded.texts == [lost["text"]]
    assert found(world, shelves.other).keys() == TEXTS.keys()
    assert world.keys(shelves.books) == set()
    assert world.statement(shelves.other_payer).charged == 0
    assert is_at_rest(world)


@pytest.mark.parametrize("how", ["parked", "awaits credits", "an edit of what was searchable"])
def test_what_was_under_way_is_an_upload_to_the_new_dataset_and_the_old_ones_owner_pays_nothing_for_it(
    world: World, shelves: Shelves, how: str
) -> None:
    books, payer = shelves.books, shelves.payer
    if how == "awaits credits":
        payer = world.user(0)
        books = world.dataset(payer)
    name = "a.txt" if how == "an edit of what was searchable" else "c.txt"
    spent = world.statement(payer).charged
    ids = world.upload(books, {name: b"Another text."})
    world.extract(books)
    move(world, ids[name], shelves.other)
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    assert world.statuses(shelves.other) == {name: "uploaded"}
    world.process(shelves.other)
    assert found(world, shelves.other) == {name: {"Another text."}}
    assert (world.statement(payer).charged, world.statement(payer).held) == (spent, 0)
    assert world.statement(shelves.other_payer).charged == 2
    assert name not in found(world, books)
    world.sweep_all()
    assert is_at_rest(world)


def test_a_document_in_a_workers_hands_is_left_to_them_and_then_follows(world: World, shelves: Shelves) -> None:
    ids = world.upload(shelves.books, {"c.txt": b"A third text."})
    world.extract(shelves.books)
    world.change("UPDATE pipeline.documents SET lease_until = now() + interval '1 h' WHERE stage IS NOT NULL")
    move(world, ids["c.txt"], shelves.other)
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 0
    world.change("UPDATE pipeline.documents SET lease_until = NULL")
    world.process(shelves.books)  # found there before the pass: it is finished there
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    world.process(shelves.other)
    assert found(world, shelves.other).keys() == {"c.txt"}
    assert world.statement(shelves.other_payer).charged == 0
    assert is_at_rest(world)


def test_what_a_worker_settles_after_its_document_was_followed_elsewhere_goes_back(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer upload, moved, overtakes a worker that has the older one in hand."""
    ids, perform = world.upload(shelves.books, {"c.txt": b"A third text."}), Extract.perform

    def and_is_overtaken(self: Extract, claimed: Sequence[Claim], charges: Mapping[str, Charge]) -> Sequence[Result]:
        results = perform(self, claimed, charges)
        world.upload(shelves.books, {"c.txt": b"A third text, mended."})
        move(world, ids["c.txt"], shelves.other)
        moves.follow_arrivals(world.services, shelves.other.id)
        return results

    spent = world.statement(shelves.payer).charged
    with monkeypatch.context() as patch:
        patch.setattr(Extract, "perform", and_is_overtaken)
        world.extract(shelves.books)
    world.process(shelves.other)
    world.sweep_all()
    assert found(world, shelves.other) == {"c.txt": {"A third text, mended."}}
    assert (world.statement(shelves.payer).charged, world.statement(shelves.payer).held) == (spent, 0)
    assert world.statement(shelves.other_payer).charged == 2
    assert is_at_rest(world)


@pytest.mark.parametrize("owner", ["the same", "another"])
def test_an_api_key_of_the_old_owner_pays_for_nothing_of_a_new_one(world: World, shelves: Shelves, owner: str) -> None:
    payer = shelves.payer if owner == "the same" else shelves.other_payer
    target = world.dataset(payer, "target")
    key = add_key(world, shelves.payer, credits=10, daily=10, monthly=10)
    world.change(
        "UPDATE pipeline.documents SET api_key_id = %s WHERE document_id = %s",
        key.payer.api_key_id, shelves.ids["a.txt"],
    )  # fmt: skip
    move(world, shelves.ids["a.txt"], target)
    world.sweep_all(list_keys=False)
    kept = world.rows("SELECT api_key_id FROM pipeline.documents WHERE document_id = %s", shelves.ids["a.txt"])
    assert kept == [(key.payer.api_key_id if owner == "the same" else None,)]
    world.process(target)
    assert world.statuses(target) == {"a.txt": "ready"}


def test_a_failed_document_and_one_that_was_moved_twice_end_where_they_were_moved_to(
    world: World, shelves: Shelves
) -> None:
    ids = world.upload(shelves.books, {"broken.pdf": b"%PDF-1.7 and no more"})
    world.process(shelves.books)
    third = world.dataset(shelves.payer, "third")
    for document_id in (ids["broken.pdf"], shelves.ids["a.txt"]):
        move(world, document_id, shelves.other)
    world.sweep_all(list_keys=False)
    move(world, shelves.ids["a.txt"], third)
    world.sweep_all(list_keys=False)
    world.process(shelves.other)
    world.process(third)
    assert world.statuses(shelves.other) == {"broken.pdf": "failed"}
    assert found(world, third).keys() == {"a.txt"}
    assert found(world, shelves.other) == {}
    assert is_at_rest(world)


# --- files ------------------------------------------------------------------------------------------------------------

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
    assert world.sweep_all(list_keys=False).withdrawn == Withdrawn(files_not_copied=1)
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
    assert remaining(world.services, shelves.other.id) == 0, "no run is launched for it, until it is due"
    locked.clear()
    world.change("UPDATE pipeline.documents SET retry_at = now() - interval '1 s' WHERE retry_at IS NOT NULL")
    assert remaining(world.services, shelves.other.id) == 1
    world.process(shelves.other)
    assert found(world, shelves.other) == {"a.txt": {NEW.decode()}, "c.txt": {NEW.decode()}}
