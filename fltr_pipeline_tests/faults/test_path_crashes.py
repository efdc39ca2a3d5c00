"""A process is killed around every write on the way from an upload to search, and others go on after it.

The points are listed in path_crash_points.txt, which a test holds against what the operations really write. Each is
crossed with who goes on. FLTR_FAULTS=long (`make test-faults`) runs all cases, `make test` some, drawn from FLTR_SEED.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache, partial
from pathlib import Path

import psycopg
import pytest

from fltr_pipeline.pipeline import extract
from fltr_pipeline.pipeline.audit import audit_ledger
from fltr_pipeline_tests.crashes import path, runs, truth, writes
from fltr_pipeline_tests.crashes.books import Books
from fltr_pipeline_tests.crashes.engine import ParserHere
from fltr_pipeline_tests.crashes.listing import cases
from fltr_pipeline_tests.crashes.path import PATH, PathOperation, Story
from fltr_pipeline_tests.crashes.points import Point, Step
from fltr_pipeline_tests.crashes.site import BusyWorld, Site
from fltr_pipeline_tests.seed import SEED

LONG = os.environ.get("FLTR_FAULTS") == "long"
LISTED = Path(__file__).with_name("path_crash_points.txt")
SHORT = 30
"""Cases out of all."""


class Recovery(StrEnum):
    """Who goes on after the death."""

    WORKER = "worker"
    RECONCILER = "reconciler"
    BOTH = "both at once"


@pytest.fixture(scope="module")
def site(
    postgres_server: str, templates: tuple[str, str], milvus_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """One pair of databases and one collection for all cases; each leaves them empty."""
    names = [f"t_{uuid.uuid4().hex[:12]}" for _ in templates]
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name, template in zip(names, templates, strict=True):
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    fltr, auth = (postgres_server.replace("/postgres?", f"/{name}?", 1) for name in names)
    world = BusyWorld(fltr_admin=fltr, auth_admin=auth, milvus_uri=milvus_uri, blobs=tmp_path_factory.mktemp("blobs"))
    site = Site.of(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "ParserPool", ParserHere)
        site.hands.services.vectors.ensure()
        yield site
    site.hands.close()
    world.close()
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in names:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What an operation comes to if nobody dies."""

    steps: tuple[Step, ...]
    charged: int
    jobs: Mapping[str, Sequence[str]]
    """Statuses of its documents' jobs, by filename."""


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> Callable[[str], Undisturbed]:
    """By an operation's name; each is done once."""
    return cache(partial(measure, site))


def measure(site: Site, name: str) -> Undisturbed:
    operation = PATH[name]
    story = operation.scene(site)
    try:
        outcome = site.kill(operation.work, story, None, writes.watch)
        assert operation.leaves or runs.reconcile(site.hands).nothing
        settle_down(site, operation, story)
        assert wrong(site, story) == []
        return Undisturbed(tuple(outcome.steps), spent(site, story), jobs_of(site, story))
    finally:
        site.world.empty()


def jobs_of(site: Site, story: Story) -> dict[str, Sequence[str]]:
    return {filename: seen.jobs for filename, seen in truth.documents(site.world, story.dataset).items()}


def surplus(jobs: Mapping[str, Sequence[str]], expected: Mapping[str, Sequence[str]]) -> list[str]:
    """An attempt that was cut short has a job of its own, which failed; a result has exactly one."""
    allowed = {f: (sorted(of_file), sorted([*of_file, "failed"])) for f, of_file in expected.items()}
    return [f"{f}: jobs {of_file}" for f, of_file in jobs.items() if sorted(of_file) not in allowed[f]]


def wrong(site: Site, story: Story) -> list[str]:
    """What is not as it should be, with everything at rest."""
    world, dataset = site.world, story.dataset
    found = [*truth.unfinished(world, dataset), *truth.drift(world, dataset, world.vectors(dataset))]
    expected = dict.fromkeys(story.texts, "ready") | dict.fromkeys(story.failed, "failed")
    expected |= dict.fromkeys(story.waiting, "awaiting_credits") | dict.fromkeys(story.ownerless, "ready")
    if (statuses := world.statuses(dataset)) != expected:
        found.append(f"documents are {statuses}, should be {expected}")
    if (searchable := truth.searchable(site.hands.services, world, dataset)) != story.texts:
        found.append(f"searchable are {searchable}, should be {story.texts}")
    found += truth.receipts(world, story.receipts)
    found += left_of(site, story) if story.ownerless else Books.of(world, story.payer).wrong(opening=0)
    audit = audit_ledger(site.hands.services.fltr, site.hands.services.ledger, overdue=timedelta(0))
    return found + [str(f) for f in audit.findings]


def left_of(site: Site, story: Story) -> list[str]:
    """What the ledger has of a user who is gone."""
    rows = site.world.auth_rows("SELECT id FROM credit_transactions WHERE user_id = %s", story.payer.user_id)
    return [f"row {row_id} of a user who is gone" for (row_id,) in rows]


def spent(site: Site, story: Story) -> int:
    """What all of the customer's work cost; nobody knows where they are gone."""
    return 0 if story.ownerless else Books.of(site.world, story.payer).net


def out_of_sight(site: Site, story: Story) -> list[str]:
    """What was searchable before, or what is to come in its place, but isn't now."""
    now = truth.searchable(site.hands.services, site.world, story.dataset)
    return [
        f"{filename}: {now.get(filename)!r}"
        for filename, text in story.before.items()
        if now.get(filename) not in {text, story.texts.get(filename)}
    ]


def another_worker(site: Site, operation: PathOperation, story: Story) -> None:
    (operation.others or operation.work)(story, site.hands)


def reconcile(site: Site, operation: PathOperation) -> None:
    """A pass; that it lists all keys only helps where Milvus itself has lost or kept something."""
    found = runs.reconcile(site.hands).vectors
    assert operation.drifted or (found.vectors_orphaned, found.vectors_missing) == (0, 0)


def reconciler(site: Site, operation: PathOperation, _: Story) -> None:
    reconcile(site, operation)
    assert runs.reconcile(site.hands).nothing, "the second time"


def both(site: Site, operation: PathOperation, story: Story) -> None:
    with ThreadPoolExecutor(2) as threads:
        work = threads.submit(another_worker, site, operation, story)
        reconcile(site, operation)
        work.result()


def settle_down(site: Site, operation: PathOperation, story: Story) -> None:
    """Workers and the reconciler go on until nothing is left to do."""
    site.an_hour_passes(story)
    another_worker(site, operation, story)
    reconcile(site, operation)
    path.run(story, site.hands)
    assert runs.reconcile(site.hands).nothing, "the second time"


RECOVER = {Recovery.WORKER: another_worker, Recovery.RECONCILER: reconciler, Recovery.BOTH: both}


def test_every_write_is_listed(undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    lines, points = [], 0
    for name in PATH:
        steps = undisturbed(name).steps
        lines += [name, *(f"  {step}" for step in steps)]
        points += sum(len(step.moments) for step in steps)
    print(f"{len(PATH)} operations, {points} points, {points * len(Recovery)} cases")
    sent = tmp_path / LISTED.name
    sent.write_text("\n".join(lines) + "\n")
    assert LISTED.read_text() == sent.read_text(), f"other writes are made; if that is meant: cp {sent} {LISTED}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "point", "recovery"),
    [pytest.param(*case, id=" / ".join(map(str, case))) for case in cases(LISTED, Recovery, SHORT)],
)
def test_a_death_on_the_way_loses_nothing(
    site: Site, undisturbed: Callable[[str], Undisturbed], name: str, point: Point, recovery: Recovery
) -> None:
    print(f"FLTR_SEED={SEED}")
    operation, expected = PATH[name], undisturbed(name)
    assert point.step in expected.steps, f"{LISTED.name} is out of date: see test_every_write_is_listed"
    story = operation.scene(site)
    try:
        outcome = site.kill(operation.work, story, point, writes.watch)
        assert outcome.hit, f"never came to {point}"
        assert out_of_sight(site, story) == []
        site.an_hour_passes(story)
        RECOVER[recovery](site, operation, story)
        assert out_of_sight(site, story) == []
        settle_down(site, operation, story)
        assert wrong(site, story) == []
        assert surplus(jobs_of(site, story), expected.jobs) == []
        assert spent(site, story) == expected.charged
    finally:
        site.world.empty()
