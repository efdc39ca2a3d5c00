"""A file is uploaded anew at any point of its own processing: the newer input wins, and is paid for fairly.

The points are the ends of all transactions on `fltr` and of all calls of Milvus; each is reached by one worker's
process of one document, and some of them are chosen from a seed (all in the long form).
"""

import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Connection, event

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.setup import ground, set_up
from fltr_pipeline.stores.fltr import generations
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests.world import World

LONG = os.environ.get("FLTR_FAULTS") == "long"
SEED = int(os.environ.get("FLTR_SEED", random.SystemRandom().randrange(2**32)))
SHORT = 3
"""Points of each scene in `make test`."""

FILE = "a.txt"
SHARED = " ".join(f"shared {n}" for n in range(200)) + "."
INPUTS = {name: (f"Version {name}.\n\n{SHARED}").encode() for name in "ABC"}


@dataclass
class Points:
    """Calls `at(n)` at the n-th point that the test's own thread reaches while it is on."""

    at: Callable[[int], None] = lambda _: None
    reached: int = 0
    _on: bool = False
    _thread: int = field(default_factory=threading.get_ident)

    def here(self, *_: object) -> None:
        if self._on and threading.get_ident() == self._thread:
            self._on = False  # what is done there reaches no points
            self.at(self.reached)
            self.reached, self._on = self.reached + 1, True

    @contextmanager
    def on(self, at: Callable[[int], None]) -> Iterator[None]:
        self.at, self.reached, self._on = at, 0, True
        yield
        self._on = False


@dataclass
class Desk:
    """A worker that can be interrupted, and what it decided, and published or found to be live already."""

    world: World
    extract: Extract
    points: Points
    decided: set[tuple[str, int]] = field(default_factory=set)
    published: set[tuple[str, int]] = field(default_factory=set)

    def work(self, dataset: Dataset, at: Callable[[int], None]) -> int:
        """All stages once; the points that were reached."""
        worker = self.world.worker()
        works = (self.extract, Plan(self.world.services), Embed(self.world.services))
        with self.points.on(at):
            for work in works:
                self.world.stage(work, dataset, worker)
        return self.points.reached

    def scene(self) -> tuple[Payer, Dataset]:
        payer = self.world.user(credits=100)
        dataset = self.world.dataset(payer)
        set_up(self.world.services, self.world.billing, self.world.worker(), ground(self.world.services, dataset.id))
        return payer, dataset

    def upload(self, dataset: Dataset, name: str) -> None:
        self.world.upload(dataset, {FILE: INPUTS[name]})

    def play(self, dataset: Dataset, uploads: Sequence[tuple[int, str]]) -> None:
        """Work on what waits; at each of these points, upload that input. Then work until nothing waits."""
        left = list(uploads)

        def interrupt(n: int) -> None:
            while left and n == left[0][0]:
                self.upload(dataset, left.pop(0)[1])

        self.work(dataset, interrupt)
        for _, name in left:  # points that were not reached any more
            self.upload(dataset, name)
        for _ in range(3):
            self.work(dataset, lambda _: None)
        expiry.sweep(self.world.services, self.world.billing)
        sweep(self.world.services, dataset.id)


@pytest.fixture
def desk(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    constant: Any = lambda self, texts: [[1.0] + [0.0] * (self.dimension - 1)] * len(texts)  # noqa: E731
    monkeypatch.setattr(EmbeddingModel, "encode", constant)
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "60")
    points = Points()
    for name in ("insert", "present"):
        call = getattr(VectorStore, name)

        def and_a_point(*arguments: Any, _call: Any = call) -> Any:
            found = _call(*arguments)
            points.here()
            return found

        monkeypatch.setattr(VectorStore, name, and_a_point)
    event.listen(world.services.fltr, "checkin", points.here)
    with Extract(world.services) as extract:
        desk = Desk(world, extract, points)
        for name, kept in (("decide", desk.decided), ("publish", desk.published), ("confirm", desk.published)):
            write = getattr(generations, name)

            def and_remember(
                tx: Connection, claims: Sequence[Claim], _write: Any = write, _kept: set[Any] = kept
            ) -> set[str]:
                done: set[str] = _write(tx, claims)
                _kept |= {(c.document_id, c.generation) for c in claims if c.document_id in done}
                return done

            monkeypatch.setattr(generations, name, and_remember)
        yield desk
    event.remove(world.services.fltr, "checkin", points.here)


def is_at_rest(desk: Desk, payer: Payer, dataset: Dataset, last: str) -> None:
    """The last input is what is searchable, with right vectors, everything else is gone, and the books are closed."""
    world = desk.world
    ((document, status, content),) = world.rows(
        "SELECT id::text, status, content FROM documents WHERE dataset_id = %s", dataset.id
    )
    assert (status, content) == ("ready", INPUTS[last].decode())
    for start, end, digest in world.rows(
        "SELECT start_offset, end_offset, digest FROM pipeline.chunks WHERE document_id = %s", document
    ):
        assert hashlib.sha256(content[start:end].encode()).hexdigest() == digest
    assert world.rows("SELECT state FROM pipeline.generations WHERE document_id = %s", document) == [("live",)]
    assert world.rows("SELECT count(*) FROM pipeline.retired_keys WHERE document_id = %s", document) == [(0,)]
    assert compare(world.services, dataset.id).none
    jobs = [status for (status,) in world.rows("SELECT status FROM processing_jobs WHERE document_id = %s", document)]
    published = {n for i, n in desk.published if i == document}
    assert set(jobs) <= {"completed", "canceled"}
    assert jobs.count("completed") == len(published)
    paid_fairly(desk, payer, document)


def paid_fairly(desk: Desk, payer: Payer, document: str) -> None:
    """Work that was done is paid, once; what was not decided is not embedding; what was there already is free."""
    statement = desk.world.statement(payer)
    assert statement.held == 0
    charges = desk.world.rows(
        "SELECT op, generation, state, charged FROM pipeline.charges WHERE subject_id = %s AND amount > 0", document
    )
    assert {state for _, _, state, _ in charges} <= {"settled", "released"}
    assert statement.charged == sum(charged or 0 for *_, charged in charges)
    assert all(charged in {0, 1} for *_, charged in charges)
    embedded = {(document, generation) for op, generation, _, n in charges if op == "document_embed" and n}
    assert embedded <= desk.decided


def points_of(desk: Desk, before: str | None, first: str) -> int:
    """How many points a process of this input has, undisturbed."""
    _, dataset = desk.scene()
    if before:
        desk.upload(dataset, before)
        desk.play(dataset, [])
    desk.upload(dataset, first)
    return desk.work(dataset, lambda _: None)


SCENES = {
    "a first version, replaced in the middle": (None, "A", "B"),
    "a first version, uploaded twice": (None, "A", "A"),
    "an edit, uploaded twice": ("A", "B", "B"),
    "an edit, taken back in the middle": ("A", "B", "A"),
    "an edit, edited again in the middle": ("A", "B", "C"),
    "the same again, edited in the middle": ("A", "A", "B"),
}


@pytest.mark.parametrize("scene", SCENES)
def test_an_upload_at_any_point_of_the_work_wins(desk: Desk, scene: str) -> None:
    before, first, then = SCENES[scene]
    n = points_of(desk, before, first)
    assert n > 10
    chance = random.Random(f"{SEED} {scene}")
    for point in range(n) if LONG else sorted(chance.sample(range(n), SHORT)):
        print(f"FLTR_SEED={SEED}: {scene}, at point {point} of {n}")
        payer, dataset = desk.scene()
        if before:
            desk.upload(dataset, before)
            desk.play(dataset, [])
        spent = desk.world.statement(payer).charged
        published = len(desk.published)
        desk.upload(dataset, first)
        desk.play(dataset, [(point, then)])
        is_at_rest(desk, payer, dataset, last=then)
        charged = desk.world.statement(payer).charged - spent
        if before == then and len(desk.published) == published + 1:
            assert charged <= 2, "what is searchable already costs nothing: only the edit was begun"
        if first == then:
            assert charged == 2, "the same bytes again are the same work"
        assert charged <= 4


@pytest.mark.parametrize("n", range(40 if LONG else 2))
def test_any_uploads_at_any_points(desk: Desk, n: int) -> None:
    chance = random.Random(f"{SEED} any {n}")
    for _ in range(2):
        payer, dataset = desk.scene()
        first, *rest = chance.choices("ABC", k=chance.randint(2, 5))
        uploads = [
            (point, name) for point, name in zip(sorted(chance.choices(range(40), k=len(rest))), rest, strict=True)
        ]
        print(f"FLTR_SEED={SEED}: {first}, then {uploads}")
        desk.upload(dataset, first)
        desk.play(dataset, uploads)
        is_at_rest(desk, payer, dataset, last=[first, *rest][-1])


def test_the_same_file_again_is_an_attempt_that_does_and_costs_nothing(desk: Desk) -> None:
    payer, dataset = desk.scene()
    for n in range(3):
        desk.upload(dataset, "A")
        desk.play(dataset, [])
        is_at_rest(desk, payer, dataset, last="A")
        assert desk.world.rows("SELECT status, count(*) FROM processing_jobs GROUP BY 1") == [("completed", n + 1)]
    assert desk.world.statement(payer).charged == 2
    assert len(desk.world.rows("SELECT DISTINCT key FROM pipeline.chunks")) == len(
        set(desk.world.services.vectors.keys(dataset.id))
    )
