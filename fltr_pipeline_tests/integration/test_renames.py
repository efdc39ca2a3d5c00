"""What changes about a document but not its bytes: name, folder, time. Nothing is embedded anew, nothing is charged."""

import shutil
from typing import Any

import pytest

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests.world import World

RENAME = "UPDATE documents SET filename = %s WHERE id = %s"
UPLOADED_ANEW = "UPDATE documents SET filename = %s, status = 'uploaded', updated_at = now() WHERE id = %s"


@pytest.fixture(autouse=True)
def _without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    constant: Any = lambda self, texts: [[1.0] + [0.0] * (self.dimension - 1)] * len(texts)  # noqa: E731
    monkeypatch.setattr(EmbeddingModel, "encode", constant)


def names_found(world: World, dataset: Dataset) -> set[str]:
    return {hit.place.filename for hit in search(world.services, dataset.id, "text", k=20)}


def test_a_new_name_another_folder_or_a_touch_embeds_nothing_and_costs_nothing(world: World) -> None:
    payer = world.user(credits=50)
    dataset = world.dataset(payer)
    before = ["renamed.txt", "old/moved.txt", "touched.txt", "again.txt", "anew.txt", "gone.txt"]
    ids = world.upload(dataset, {name: f"The text of {name}, of a few words.".encode() for name in before})
    world.process(dataset)
    keys, spent = set(world.services.vectors.keys(dataset.id)), world.statement(payer)
    jobs = world.rows("SELECT count(*) FROM processing_jobs")

    # In the application's table alone: the blob keeps its key, and nobody has anything to do.
    world.change(RENAME, "title.txt", ids["renamed.txt"])
    world.change(RENAME, "new/moved.txt", ids["old/moved.txt"])
    world.change("UPDATE documents SET updated_at = now() WHERE id = %s", ids["touched.txt"])
    assert [report.claimed for report in world.process(dataset)[1:]] == [0, 0, 0]
    assert world.rows("SELECT count(*) FROM processing_jobs") == jobs
    assert {"title.txt", "new/moved.txt", "touched.txt"} < names_found(world, dataset)

    # Uploaded anew: the same bytes, under the same key, under a second one, and with the first one removed.
    world.upload(dataset, {"again.txt": b"The text of again.txt, of a few words."})
    for name in ("anew.txt", "gone.txt"):
        if name == "gone.txt":
            shutil.rmtree(world.blobs / dataset.id / ids[name])
        text = f"The text of {name}, of a few words.".encode()
        world.services.blobs.put(dataset.id, ids[name], f"new {name}", text)
        world.change(UPLOADED_ANEW, f"new {name}", ids[name])
    _, extracted, planned, embedded = world.process(dataset)
    assert (extracted.counts["unchanged"], planned.counts["chunks_new"], embedded.counts["chunks_embedded"]) == (
        3,
        0,
        0,
    )

    assert set(world.services.vectors.keys(dataset.id)) == keys
    assert names_found(world, dataset) == {
        "title.txt", "new/moved.txt", "touched.txt", "again.txt", "new anew.txt", "new gone.txt"
    }  # fmt: skip
    assert set(world.statuses(dataset).values()) == {"ready"}
    statement = world.statement(payer)
    assert (statement.charged, statement.held) == (spent.charged, 0)
    assert compare(world.services, dataset.id).none


def test_a_name_that_changes_in_the_middle_of_the_work_does_no_harm(world: World) -> None:
    dataset = world.dataset(world.user(credits=50))
    ids = world.upload(dataset, {"a.txt": b"A text of a few words."})
    world.extract(dataset)
    world.change("UPDATE documents SET filename = 'b.txt', updated_at = now() WHERE id = %s", ids["a.txt"])
    world.process(dataset)
    assert world.statuses(dataset) == {"b.txt": "ready"}
    assert world.rows("SELECT status FROM processing_jobs") == [("completed",)]


@pytest.mark.parametrize("broken", ["the file", "the model"])
def test_a_reprocessing_that_fails_leaves_the_version_before_it_searchable_and_ready(
    world: World, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    payer = world.user(credits=50)
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {"a.txt": b"The first version, " + b"of a few words, " * 40})
    world.process(dataset)
    keys, content = set(world.services.vectors.keys(dataset.id)), world.rows("SELECT content FROM documents")
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "20")
    with monkeypatch.context() as patch:
        del world.services
        if broken == "the file":
            world.services.blobs.put(dataset.id, ids["a.txt"], "a.txt", b" ")
        else:
            patch.setattr(EmbeddingModel, "encode", lambda *_: 1 / 0)
        reports = world.process(dataset, ReprocessMode.stale)
    codes = [failure.code for report in reports for failure in report.failures]
    assert codes == ["empty" if broken == "the file" else "internal_error"]
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert world.rows("SELECT content FROM documents") == content
    assert names_found(world, dataset) == {"a.txt"}
    assert set(world.services.vectors.keys(dataset.id)) == keys
    assert sorted(world.rows("SELECT status FROM processing_jobs")) == [("completed",), ("failed",)]
    statement = world.statement(payer)
    assert (statement.charged, statement.held) == (2, 0)
    assert compare(world.services, dataset.id).none
