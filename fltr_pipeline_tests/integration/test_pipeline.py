"""The four ops on real stores, without Dagster: what a document, a balance and a vector go through."""

import pytest

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.search import search
from fltr_pipeline_tests.world import World

TEXT = b"The treaty of Westphalia ended the thirty years war in 1648.\n\nIt was signed in Osnabrueck and in Muenster."
NOTES = b"# Bread\n\nFlour, water, salt and yeast; knead, let it rise, bake at 220 degrees for forty minutes.\n"


def test_documents_become_searchable_and_are_charged(world: World) -> None:
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.upload(dataset, {"treaty.txt": TEXT, "bread.md": NOTES})

    world.process(dataset)

    assert world.statuses(dataset) == {"treaty.txt": "ready", "bread.md": "ready"}
    best = search(world.services, dataset.id, "how do I bake a loaf?", k=1)[0].place
    assert best.filename == "bread.md"
    assert best.page == 1
    content = world.rows("SELECT content FROM documents WHERE filename = 'bread.md'")[0][0]
    assert content[best.start : best.end] == best.text
    statement = world.statement(payer)
    assert (statement.reserved, statement.charged, statement.held, statement.available) == (4, 4, 0, 6)
    assert compare(world.services, dataset.id).none
    assert set(world.rows("SELECT status FROM processing_jobs")) == {("completed",)}
