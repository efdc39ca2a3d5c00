"""A worker is killed around every statement and COMMIT of every operation on the ledger, and somebody goes on after it.

The points are listed in ledger_crash_points.txt, which a test holds against what the operations really send. Each is
crossed with who goes on. FLTR_FAULTS=long (`make test-faults`) runs all cases, `make test` some, drawn from FLTR_SEED.
"""

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

import psycopg
import pytest

from fltr_pipeline.models import Stage
from fltr_pipeline.pipeline.audit import audit_ledger
from fltr_pipeline_tests.crashes import workers
from fltr_pipeline_tests.crashes.books import Books
from fltr_pipeline_tests.crashes.listing import cases
from fltr_pipeline_tests.crashes.operations import OPENING, OPERATIONS, Operation
from fltr_pipeline_tests.crashes.points import Moment, Point
from fltr_pipeline_tests.crashes.site import BusyWorld, Site
from fltr_pipeline_tests.crashes.workers import EMBEDDED, Scene
from fltr_pipeline_tests.seed import SEED

LONG = os.environ.get("FLTR_FAULTS") == "long"
LISTED = Path(__file__).with_name("ledger_crash_points.txt")
SHORT = 300
"""Cases out of all."""


class Recovery(StrEnum):
    """Who goes on after the death."""

    RESUME = "resume"
    SWEEP = "sweep"
    BOTH = "sweep and resume"
    TWO_SWEEPS = "two sweeps at once"


def resume(site: Site, operation: Operation, scene: Scene) -> None:
    operation.resume(scene, site.hands)


def sweep(site: Site, _: Operation, scene: Scene) -> None:
    workers.sweep(scene, site.hands)
    assert workers.sweep(scene, site.hands).nothing


def sweep_and_resume(site: Site, operation: Operation, scene: Scene) -> None:
    sweep(site, operation, scene)
    resume(site, operation, scene)


def two_sweeps(site: Site, operation: Operation, scene: Scene) -> None:
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: workers.sweep(scene, site.hands), range(2)))
    assert workers.sweep(scene, site.hands).nothing


RECOVER = {
    Recovery.RESUME: resume,
    Recovery.SWEEP: sweep,
    Recovery.BOTH: sweep_and_resume,
    Recovery.TWO_SWEEPS: two_sweeps,
}


@pytest.fixture(scope="module")
def site(
    postgres_server: str, templates: tuple[str, str], milvus_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """One pair of databases for all cases: each has its own user and documents, which are gone after it."""
    names = [f"t_{uuid.uuid4().hex[:12]}" for _ in templates]
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name, template in zip(names, templates, strict=True):
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    fltr, auth = (postgres_server.replace("/postgres?", f"/{name}?", 1) for name in names)
    world = BusyWorld(fltr_admin=fltr, auth_admin=auth, milvus_uri=milvus_uri, blobs=tmp_path_factory.mktemp("blobs"))
    site = Site.of(world)
    yield site
    site.hands.close()
    world.close()
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in names:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def test_every_statement_and_commit_is_listed(site: Site, tmp_path: Path) -> None:
    lines, points = [], 0
    for operation in OPERATIONS.values():
        scene = operation.scene(site)
        steps = site.kill(operation.work, scene, None).steps
        site.clear(scene)
        lines += [operation.name, *(f"  {step}" for step in steps)]
        points += sum(len(step.moments) for step in steps)
    print(f"{len(OPERATIONS)} operations, {points} points, {points * len(Recovery)} cases")
    sent = tmp_path / LISTED.name
    sent.write_text("\n".join(lines) + "\n")
    assert LISTED.read_text() == sent.read_text(), f"other statements are sent; if that is meant: cp {sent} {LISTED}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "point", "recovery"),
    [pytest.param(*case, id=" / ".join(map(str, case))) for case in cases(LISTED, Recovery, SHORT)],
)
def test_a_death_costs_nobody_anything(site: Site, name: str, point: Point, recovery: Recovery) -> None:
    print(f"FLTR_SEED={SEED}")
    operation = OPERATIONS[name]
    scene = operation.scene(site)
    try:
        outcome = site.kill(operation.work, scene, point)
        assert outcome.hit, f"never came to {point}"
        if point.moment is Moment.LOST and point.step.store == "fltr_auth":
            assert outcome.unavailable is None, "the ledger tries again by itself"
        site.an_hour_passes(scene)
        RECOVER[recovery](site, operation, scene)
        books = Books.of(site.world, scene.payer)
        repeated = recovery in {Recovery.RESUME, Recovery.BOTH}
        assert books.wrong(OPENING) == []
        if repeated:
            assert (books.net, books.granted) == (operation.charged, operation.granted[-1])
        else:
            assert books.net in operation.swept
            assert books.granted in operation.granted
        if scene.stage is Stage.EMBED:
            published = set(site.world.statuses(scene.dataset).values()) == {"ready"}
            assert published == (EMBEDDED in {hold.net for hold in books.holds}), "published if and only if it is paid"
        audit = audit_ledger(site.hands.services.fltr, site.hands.services.ledger, overdue=timedelta(0))
        assert (audit.open, audit.errors, audit.warnings, audit.findings) == (0, 0, 0, ())
    finally:
        site.clear(scene)
