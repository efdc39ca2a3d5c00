"""The main job, from nothing to search, on the embedded stack; and the proof that each part of it is right.

Belongs here: setting the scene, waiting, examining. Does not: what is printed (cli.demo).
Each demo has a user and a dataset of its own, so it can be run at any time, also beside one that was killed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.credits.statement import Statement
from fltr_pipeline.embedded import rpc
from fltr_pipeline.embedded.state import StackState
from fltr_pipeline.errors import FltrError
from fltr_pipeline.models import PAGE_BREAK, DocumentStatus
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.search import Hit, search
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.uploads import Uploaded, dataset_of, upload
from fltr_pipeline.samples import EXPECTED_FAILURES, QUERIES, Query, sample_files
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets
from fltr_pipeline.stores.fltr.datasets import Dataset, DatasetStatus
from fltr_pipeline.stores.schema.development import add_user

CREDITS = 200
PATIENCE_SECONDS = 300.0
"""When no document of any dataset has moved for this long, the demo gives up. Its runs may wait for others' first."""
_POLL_SECONDS = 1.0
_END_STATES = {DocumentStatus.READY, DocumentStatus.FAILED, DocumentStatus.AWAITING_CREDITS}
_RUNS = """
{ runsOrError(filter: { tags: [{ key: "dagster/partition", value: "%s" }] }) {
    ... on Runs { results { runId status tags { key value } } } } }
"""
_UNFINISHED = {"QUEUED", "NOT_STARTED", "MANAGED", "STARTING", "STARTED", "CANCELING"}
_SENSOR_TAG = {"key": "dagster/sensor_name", "value": "uploaded_documents"}


class DemoStalled(FltrError):
    """Nothing moved for a long time."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Who uploads what."""

    email: str
    payer: Payer
    dataset: Dataset
    files: int


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be true."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found."""

    scene: Scene
    status: DatasetStatus
    runs: Sequence[str]
    """Their final statuses."""
    searches: Sequence[tuple[Query, Sequence[Hit]]]
    before: int
    statement: Statement
    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        """Whether everything was right."""
        return all(check.passed for check in self.checks)


def set_scene(services: Services, admin_url: str) -> Scene:
    """A new user with credits, and a new dataset of theirs."""
    moment = f"{datetime.now():%Y-%m-%d %H:%M:%S.%f}"  # noqa: DTZ005 - for people to read, in their own zone
    email = f"demo-{moment.translate(str.maketrans(' ', 'T', ':-'))}@fltr.example".lower()
    user_id = add_user(admin_url, email, "Demo", CREDITS)
    payer = services.ledger.payer(user_id)
    if payer is None:
        raise FltrError(f"the user {email} that was just added is gone again")
    return Scene(email, payer, dataset_of(services, user_id, f"demo {moment[:19]}"), len(sample_files()))


def upload_samples(services: Services, scene: Scene) -> Iterator[Uploaded]:
    """The samples, one by one; from here on nobody but the sensor does anything."""
    return upload(services, scene.dataset, sample_files())


def wait(
    services: Services, scene: Scene, state: StackState, on_change: Callable[[DatasetStatus, Sequence[str]], None]
) -> None:
    """Until every document is in an end state and every run of the dataset has ended.

    Raises:
        DemoStalled: nothing moved for `PATIENCE_SECONDS`.
    """
    last: object = None
    last_of_all: object = None
    since = time.monotonic()
    while True:
        with transaction(services.fltr) as tx:
            status, everything = datasets.status(tx, scene.dataset), datasets.counts_of_all(tx)
        runs = [run["status"] for run in _runs(state, scene.dataset)]
        if (status, runs) != last:
            last, since = (status, runs), time.monotonic()
            on_change(status, runs)
        if everything != last_of_all:
            last_of_all, since = everything, time.monotonic()
        ended = sum(n for name, n in status.documents.items() if name in _END_STATES)
        if ended == scene.files and runs and not _UNFINISHED & set(runs):
            return
        if time.monotonic() - since > PATIENCE_SECONDS:
            raise DemoStalled(
                f"nothing moved for {PATIENCE_SECONDS:.0f} s; documents: {status.documents}, runs: {runs or 'none'}; "
                f"see {state.ui} and the logs under {state.home / 'logs'}"
            )
        time.sleep(_POLL_SECONDS)


def examine(services: Services, scene: Scene, state: StackState) -> Outcome:
    """Look at everything that the demo promises, and judge it."""
    with transaction(services.fltr) as tx:
        status = datasets.status(tx, scene.dataset)
    runs = _runs(state, scene.dataset)
    searches = [(query, search(services, scene.dataset.id, query.text, k=query.within)) for query in QUERIES]
    statement = services.ledger.statement(scene.payer)
    checks = [
        *_document_checks(status),
        *_run_checks(runs),
        *_search_checks(services, searches),
        *_credit_checks(statement),
        _manifest_check(services, scene),
        Check("the UI answers", rpc.get(_ui_port(state), "/server_info"), state.ui),
    ]
    return Outcome(scene, status, [run["status"] for run in runs], searches, CREDITS, statement, checks)


def _document_checks(status: DatasetStatus) -> Iterator[Check]:
    total, failed = len(sample_files()), {f.filename: f.code for f in status.failures}
    ready = status.documents.get(DocumentStatus.READY, 0)
    expected = total - len(EXPECTED_FAILURES)
    yield Check("documents are ready", ready == expected, f"{ready} of {expected}")
    yield Check("the bad ones failed for their own reason", failed == EXPECTED_FAILURES, f"{failed}")
    counted = f"{status.pages} pages, {status.chunks} chunks, {status.tokens} tokens"
    yield Check("pages, chunks and tokens are counted", min(status.pages, status.chunks, status.tokens) > 0, counted)


def _run_checks(runs: Sequence[dict[str, Any]]) -> Iterator[Check]:
    sensed = sum(_SENSOR_TAG in run["tags"] for run in runs)
    yield Check("the sensor launched the runs", sensed == len(runs) > 0, f"{sensed} of {len(runs)}")
    succeeded = sum(run["status"] == "SUCCESS" for run in runs)
    yield Check("the runs succeeded", succeeded == len(runs) > 0, f"{succeeded} of {len(runs)}")


def _search_checks(services: Services, searches: Sequence[tuple[Query, Sequence[Hit]]]) -> Iterator[Check]:
    for query, hits in searches:
        found = [hit.place.filename for hit in hits]
        yield Check(f"search: {query.text}", query.filename in found, f"{query.filename} among {sorted(set(found))}")
    hits = [hit for _, found in searches for hit in found]
    true = sum(_citation_is_true(services, hit) for hit in hits)
    yield Check("each hit is that slice of its document, on that page", true == len(hits) > 0, f"{true} of {len(hits)}")


def _citation_is_true(services: Services, hit: Hit) -> bool:
    place = hit.place
    with transaction(services.fltr) as tx:
        content = datasets.content(tx, place.document_id) or ""
    page = content.count(PAGE_BREAK, 0, place.start) + 1
    return bool(place.text) and content[place.start : place.end] == place.text and page == place.page


def _credit_checks(statement: Statement) -> Iterator[Check]:
    s = statement
    yield Check("no hold is open", s.held == 0, f"{s.held} held")
    yield Check("work was charged", s.charged > 0, f"{s.charged} charged")
    yield Check(
        "reserved = charged + returned",
        s.reserved == s.charged + s.returned,
        f"{s.reserved} = {s.charged} + {s.returned}",
    )
    yield Check(
        "balance = before - charged", s.available == CREDITS - s.charged, f"{s.available} = {CREDITS} - {s.charged}"
    )


def _manifest_check(services: Services, scene: Scene) -> Check:
    drift = compare(services, scene.dataset.id)
    detail = f"{drift.live} live, {len(drift.missing)} missing, {len(drift.orphans)} orphans"
    return Check("manifest and Milvus hold the same keys", drift.none and drift.live > 0, detail)


def _runs(state: StackState, dataset: Dataset) -> list[dict[str, Any]]:
    """The dataset's runs as the UI shows them; none while it does not answer."""
    data = rpc.graphql(_ui_port(state), _RUNS % dataset.id)
    return list((data or {}).get("runsOrError", {}).get("results", []))


def _ui_port(state: StackState) -> int:
    return int(state.ui.rpartition(":")[2])
