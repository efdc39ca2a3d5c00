"""A dataset's whole life, on Milvus Lite and on a Milvus server: after each step the manifest is what Milvus holds."""

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.pipeline.reconcile import compare_all
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.sweeper import Report
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.vectors import ON_EACH_MILVUS
from fltr_pipeline_tests.world import BREAD, TREATY, World

LOG = [" ".join(f"Day {day}, hour {hour}: wind {day * hour % 9}." for hour in range(24)) for day in range(12)]
"""A chunk or so for each day, each unlike the others."""
EDITED = [*LOG[:6], "On this day the harbour was closed.", *LOG[7:]]


def text(paragraphs: list[str]) -> bytes:
    return "\n\n".join(paragraphs).encode()


def manifest(world: World) -> set[str]:
    """Every key that is searchable."""
    live = "SELECT key FROM pipeline.chunks c JOIN pipeline.documents d USING (document_id)"
    return {key for (key,) in world.rows(f"{live} WHERE c.generation = d.live_generation")}


def best(world: World, dataset: Dataset, query: str) -> str:
    return search(world.services, dataset.id, query, k=1)[0].place.filename


@ON_EACH_MILVUS
def test_a_dataset_is_ingested_edited_reprocessed_deleted_from_and_swept(world: World) -> None:
    payer = world.user(credits=100)
    dataset = world.dataset(payer)
    files = {"treaty.txt": TREATY, "bread.md": BREAD, "log.txt": text(LOG)}
    world.upload(dataset, files)
    *_, embedded = world.process(dataset)
    world.sweep_all()  # what other tests left in Milvus
    first = world.keys(dataset)
    assert first == manifest(world)
    assert len(first) == embedded.counts["chunks_embedded"] > 10
    assert world.statuses(dataset) == dict.fromkeys(files, "ready")
    assert best(world, dataset, "how do I bake a loaf?") == "bread.md"
    assert world.statement(payer).charged == 6

    world.upload(dataset, {"log.txt": text(EDITED)})
    *_, embedded = world.process(dataset)
    edited = world.keys(dataset)
    assert edited == manifest(world)
    assert 0 < len(edited - first) == embedded.counts["chunks_embedded"] < 4
    assert best(world, dataset, "when was the harbour closed?") == "log.txt"
    assert world.statement(payer).charged == 8

    assert [report.done for report in world.process(dataset, ReprocessMode.all)[1:]] == [3, 0, 0]
    assert world.keys(dataset) == edited

    world.change("DELETE FROM documents WHERE filename = 'treaty.txt'")
    assert best(world, dataset, "the treaty of Westphalia") != "treaty.txt"
    report = world.sweep_all()
    assert (report.withdrawn, report.vectors.vectors_retired) == (Withdrawn(documents_deleted=1), 1)
    assert [(r.dataset_id, r.vectors) for r in report.receipts] == [(dataset.id, 1)]
    assert world.keys(dataset) == manifest(world) < edited

    assert (compare_all(world.services), world.sweep_all()) == ({}, Report())
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (8, 0, 92)
