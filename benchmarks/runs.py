"""The work of a run without Dagster: a dataset, uploads, the four ops one after another.

Belongs here: what several benchmarks do between two looks at the clock. Does not: timing tables, servers.
"""

import multiprocessing
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import ClassVar
from zlib import crc32

import numpy as np
import psycopg

from fltr_pipeline.embedded.postgres import SUPERUSER
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.services import Services, open_services
from fltr_pipeline.pipeline.setup import Ground, ground, set_up
from fltr_pipeline.pipeline.stage import StageRun, StageWork
from fltr_pipeline.pipeline.uploads import dataset_of, upload
from fltr_pipeline.pipeline.worker import Report, Worker
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.development import add_user
from fltr_pipeline.text.model import EmbeddingModel

_START_SECONDS = 120


class ConstantModel(EmbeddingModel):
    """The real tokenizer, a vector without work: what is left is the engine's own cost.

    One vector of a thousand, by the text: all the same would be a case of its own to Milvus' index.
    """

    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        return [self._vectors[crc32(text.encode()) % len(self._vectors)] for text in texts]

    @cached_property
    def _vectors(self) -> list[list[float]]:
        vectors = np.random.default_rng(1).normal(size=(1000, self.dimension))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        made: list[list[float]] = vectors.tolist()
        return made


def with_constant_model(services: Services) -> Services:
    """The engine alone, its tokenizer loaded before a clock starts."""
    model = ConstantModel(services.model.name, batch_size=1, threads=0)
    model.tokenizer.count(["loaded"])
    return replace(services, model=model)


@dataclass(frozen=True)
class Done:
    """What a run did, and the seconds that it took, by stage; the sweep is a stage of its own here."""

    stages: Mapping[str, tuple[Report, float]]

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.stages.values())

    @property
    def charged(self) -> int:
        """Credits."""
        return sum(report.credits_charged for report, _ in self.stages.values())

    def count(self, what: str) -> int:
        return sum(report.counts[what] for report, _ in self.stages.values())


def new_dataset(services: Services, files: Sequence[tuple[str, Path]]) -> Ground:
    admin = as_role(services.settings.endpoints.auth_database_url.get_secret_value(), SUPERUSER)
    user_id = add_user(admin, f"{uuid.uuid4().hex}@example.org", "Bench", 100_000)
    dataset = dataset_of(services, user_id, uuid.uuid4().hex)
    for _ in upload(services, dataset, files):
        pass
    return ground(services, dataset.id)


def store(services: Services, dataset: Dataset, documents: Mapping[str, str]) -> None:
    """Upload texts by filename, all of them marked in one transaction."""
    with transaction(services.fltr) as tx:
        ids = datasets.find_documents(tx, dataset.id, list(documents))
    for name, text in documents.items():
        services.blobs.put(dataset.id, ids.setdefault(name, str(uuid.uuid4())), name, text.encode())
    with transaction(services.fltr) as tx:
        datasets.upload(tx, dataset.id, [(ids[name], name) for name in documents])


def change(services: Services, statement: str, *parameters: object) -> None:
    """What the application does to `fltr`."""
    url = services.settings.endpoints.database_url.get_secret_value().replace("+psycopg", "", 1)
    with psycopg.connect(url) as connection:
        connection.execute(statement.encode(), parameters)


def ingest(
    services: Services, base: Ground, first: Callable[[], object] = lambda: None, *, documents: int = 1_000_000
) -> Done:
    """The work of a run on at most that many documents, op by op; `first`: what its mode does before, timed, too."""
    settings = services.settings
    worker = Worker(services.fltr, uuid.uuid4().hex, settings.lease_seconds)
    billing = Billing(services.fltr, services.ledger, settings.prices, settings.charging)
    done: dict[str, tuple[Report, float]] = {}
    started = time.perf_counter()
    set_up(services, billing, worker, base)
    first()
    done["set-up"] = Report(), time.perf_counter() - started
    with Extract(services) as extract:
        works: list[StageWork] = [extract, Plan(services), Embed(services)]
        for work in works:
            run = StageRun(
                services.fltr,
                billing,
                work,
                worker,
                partial(ground, services, base.dataset.id),
                settings.batch_size,
                settings.max_attempts,
            )
            started = time.perf_counter()
            done[work.stage.value] = run.run(documents), time.perf_counter() - started
    started = time.perf_counter()
    swept = Report(done=sweep(services, base.dataset.id))
    done["sweep"] = swept, time.perf_counter() - started
    return Done(done)


def ingest_together(services: Services, base: Ground, runs: int) -> Done:
    """The same by several processes at once, each doing runs of the size that the sensor launches, one after another.

    They have a constant model, and their start is not timed.
    """
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Barrier(runs + 1)
    with ProcessPoolExecutor(runs, mp_context=spawn, initializer=_Runs.meet_at, initargs=(gate,)) as processes:
        futures = [processes.submit(_Runs.of, services.settings, base.dataset.id) for _ in range(runs)]
        gate.wait(_START_SECONDS)
        started = time.perf_counter()
        reports = [report for future in futures for report in future.result()]
        seconds = time.perf_counter() - started
    charged = sum(report.credits_charged for report in reports)
    counts = sum((report.counts for report in reports), Counter[str]())
    return Done({"together": (Report(credits_charged=charged, counts=counts), seconds)})


class _Runs:
    """Those of one process."""

    gate: ClassVar[Barrier]

    @classmethod
    def meet_at(cls, gate: Barrier) -> None:
        cls.gate = gate

    @classmethod
    def of(cls, settings: Settings, dataset_id: str) -> list[Report]:
        services = with_constant_model(open_services(settings))
        services.vectors.ensure()
        base = ground(services, dataset_id)
        cls.gate.wait(_START_SECONDS)
        reports: list[Report] = []
        while True:
            run = ingest(services, base, documents=settings.run_documents)
            reports += [report for report, _ in run.stages.values()]
            if not any(report.done for report, _ in run.stages.values()):
                return reports
