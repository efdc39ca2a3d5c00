"""What tests of moved documents share. Belongs here: a dataset to move from, and looks at it. Does not: fixtures."""

from dataclasses import dataclass, field

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.pipeline import sweeper
from fltr_pipeline.pipeline.reconcile import compare_all
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.world import World

TEXTS = {name: f"The text of {name}. " + f"Every word of {name} counts. " * 60 for name in ("a.txt", "b.txt")}


@dataclass
class Encoded:
    """Texts that the model was asked for."""

    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Shelves:
    """A dataset with two searchable documents, and an empty one of somebody else."""

    payer: Payer
    books: Dataset
    other_payer: Payer
    other: Dataset
    ids: dict[str, str]


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
