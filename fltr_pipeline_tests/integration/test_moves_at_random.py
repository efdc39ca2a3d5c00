"""Uploads, moves, passes and runs in any order: the document is where it was moved to, with what was uploaded last."""

import random

import pytest

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.reconcile import compare_all
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.seed import SEED
from fltr_pipeline_tests.world import World

STEPS = 16


def texts(world: World, dataset: Dataset) -> set[str]:
    """What search finds there."""
    return {hit.place.text for hit in search(world.services, dataset.id, "text", k=10)}


def was_moved_unseen(world: World, document_id: str, dataset: Dataset) -> bool:
    """An upload that was moved, and that nobody has come by since: only one move of such a one can be followed."""
    ((status, known),) = world.rows(
        "SELECT d.status, p.dataset_id FROM documents d JOIN pipeline.documents p ON p.document_id = d.id"
        " WHERE d.id = %s",
        document_id,
    )
    return bool(status == "uploaded" and known != dataset.id)


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_a_document_ends_where_it_was_moved_to_with_what_was_uploaded_last(world: World, seed: int) -> None:
    print(f"FLTR_SEED={SEED}")
    chance = random.Random(seed)
    payers = [world.user(), world.user()]
    shelves = [world.dataset(payers[n % 2], f"shelf {n}") for n in range(3)]
    here, last = shelves[0], "The first text."
    document_id = world.upload(here, {"a.txt": last.encode()})["a.txt"]
    world.process(here)
    done: list[str] = []
    for n in range(STEPS):
        done.append(chance.choice(["upload", "move", "move", "short pass", "full pass", "run", "extract", "reprocess"]))
        match done[-1]:
            case "upload":
                last = f"The text of step {n}."
                filename = chance.choice(["a.txt", "z.txt"])
                world.services.blobs.put(here.id, document_id, filename, last.encode())
                world.change("UPDATE documents SET status = 'uploaded', updated_at = clock_timestamp()")
            case "move" if not was_moved_unseen(world, document_id, here):
                here = chance.choice(shelves)
                world.change("UPDATE documents SET dataset_id = %s", here.id)
            case "short pass" | "full pass":
                world.sweep_all(list_keys=done[-1] == "full pass")
            case "run" | "reprocess":
                world.process(
                    chance.choice(shelves), ReprocessMode.all if done[-1] == "reprocess" else ReprocessMode.pending
                )
            case "extract":
                world.extract(chance.choice(shelves))
    print(done)
    world.sweep_all()
    for shelf in shelves:
        world.process(shelf)
    world.process(here, ReprocessMode.all)
    world.sweep_all()
    assert {shelf.name: texts(world, shelf) for shelf in shelves if texts(world, shelf)} == {here.name: {last}}
    assert compare_all(world.services) == {}
    assert world.sweep_all().nothing
    assert [world.statement(payer).held for payer in payers] == [0, 0]
