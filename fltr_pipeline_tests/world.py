"""A small FLTR for tests: real databases, real Milvus, real files; users who pay and documents that they upload.

Belongs here: what several test files need to set a scene and to look at what became of it. Does not: assertions.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg

from fltr_pipeline.credits.holds import Payer, Pot
from fltr_pipeline.credits.statement import Statement
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline import sweeper
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.dispatch import waiting_documents
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reprocess import requeue
from fltr_pipeline.pipeline.services import Services, open_services
from fltr_pipeline.pipeline.setup import ground, set_up
from fltr_pipeline.pipeline.stage import StageRun, StageWork
from fltr_pipeline.pipeline.worker import Report, Worker
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.schema import AUTH_ROLE
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.development import add_user

TREATY = b"The treaty of Westphalia ended the thirty years war in 1648.\n\nIt was signed in Osnabrueck and in Muenster."
BREAD = b"# Bread\n\nFlour, water, salt and yeast; knead, let it rise, bake at 220 degrees for forty minutes.\n"


@dataclass
class World:
    fltr_admin: str
    auth_admin: str
    milvus_uri: str
    blobs: Path
    _opened: list[Services] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a run finds in its environment. The ledger's tests, too, run as the least-privilege role."""
        return {
            "FLTR_DATABASE_URL": self.fltr_admin,
            "FLTR_AUTH_DATABASE_URL": as_role(self.auth_admin, AUTH_ROLE),
            "FLTR_DAGSTER_DATABASE_URL": "postgresql+psycopg2://unused/dagster",
            "FLTR_MILVUS_URI": self.milvus_uri,
            "FLTR_BLOB_URL": str(self.blobs),
        }

    @cached_property
    def services(self) -> Services:
        services = open_services(Settings())
        self._opened.append(services)
        return services

    @property
    def billing(self) -> Billing:
        settings = self.services.settings
        return Billing(self.services.fltr, self.services.ledger, settings.prices, settings.charging)

    def close(self) -> None:
        for services in self._opened:
            services.fltr.dispose()
            services.ledger.engine.dispose()

    def user(self, credits: int = 100) -> Payer:
        user_id = add_user(self.auth_admin, f"{uuid.uuid4().hex[:8]}@example.org", "Ada", credits)
        payer = self.services.ledger.payer(user_id)
        assert payer is not None
        return payer

    def dataset(self, payer: Payer, name: str = "books") -> Dataset:
        dataset = Dataset(str(uuid.uuid4()), payer.user_id, name)
        with transaction(self.services.fltr) as tx:
            datasets.create(tx, dataset)
        return dataset

    def upload(self, dataset: Dataset, files: dict[str, bytes]) -> dict[str, str]:
        """filename → document id."""
        with transaction(self.services.fltr) as tx:
            ids = datasets.find_documents(tx, dataset.id, list(files))
        for name, data in files.items():
            document_id = ids.setdefault(name, str(uuid.uuid4()))
            self.services.blobs.put(dataset.id, document_id, name, data)
            with transaction(self.services.fltr) as tx:
                datasets.upload(tx, dataset.id, [(document_id, name)])
        return ids

    def worker(self) -> Worker:
        settings = self.services.settings
        return Worker(self.services.fltr, uuid.uuid4().hex, settings.lease_seconds, settings.stall_seconds)

    def stage(self, work: StageWork, dataset: Dataset, worker: Worker | None = None, limit: int = 10_000) -> Report:
        base = ground(self.services, dataset.id)
        worker = worker or self.worker()
        with transaction(self.services.fltr) as tx:
            ready = datasets.is_set_up(tx, dataset.id)
        if not ready:
            set_up(self.services, self.billing, worker, base)
        return StageRun(
            fltr=self.services.fltr, billing=self.billing, work=work, worker=worker,
            dataset=base.dataset, payer=base.payer, batch_size=self.services.settings.batch_size,
            max_attempts=self.services.settings.max_attempts,
            charge_user_errors=self.services.settings.charge_user_errors,
        ).run(limit)  # fmt: skip

    def extract(self, dataset: Dataset) -> Report:
        """The first document op alone."""
        with Extract(self.services) as work:
            return self.stage(work, dataset)

    def process(self, dataset: Dataset, mode: ReprocessMode = ReprocessMode.pending) -> list[Report]:
        """What a run does, without Dagster: the reports of the four ops."""
        worker = self.worker()
        reports = [set_up(self.services, self.billing, worker, ground(self.services, dataset.id))]
        requeue(self.services, dataset.id, mode, charge=False)
        with Extract(self.services) as extract:
            reports += [
                self.stage(work, dataset, worker) for work in (extract, Plan(self.services), Embed(self.services))
            ]
        sweep(self.services, dataset.id)
        return reports

    def sweep_all(self, *, list_keys: bool = True, after: str = "") -> sweeper.Report:
        """One pass of every sweeper."""
        passed = sweeper.sweep_all(self.services, self.billing, list_keys=list_keys, after=after)
        return sum(passed, sweeper.Report())

    def keys(self, dataset: Dataset) -> set[str]:
        """What Milvus holds of the dataset."""
        return set(self.services.vectors.keys(dataset.id))

    def statement(self, payer: Payer) -> Statement:
        return self.services.ledger.statement(payer)

    def statuses(self, dataset: Dataset) -> dict[str, str]:
        rows = self.rows("SELECT filename, status FROM documents WHERE dataset_id = %s", dataset.id)
        return dict(rows)

    def launchable(self) -> dict[str, int]:
        """Documents by dataset that the sensor would launch runs for."""
        with transaction(self.services.fltr) as tx:
            backlog, awaiting = datasets.backlog(tx), datasets.awaiting(tx)
        spendable = self.services.ledger.spendable({Pot(a.pot_kind, a.pot_id) for a in awaiting})
        return {b.dataset_id: b.waiting for b in waiting_documents(backlog, awaiting, spendable)}

    def rows(self, query: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        """A look into `fltr`, as its owner."""
        with psycopg.connect(self.fltr_admin) as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def auth_rows(self, query: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        """A look into `fltr_auth`, as its owner."""
        with psycopg.connect(self.auth_admin) as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def change(self, query: str, *parameters: object) -> None:
        """What the application does to `fltr`."""
        with psycopg.connect(self.fltr_admin) as connection:
            connection.execute(query.encode(), parameters)

    def change_auth(self, query: str, *parameters: object) -> None:
        """What the application does to `fltr_auth`."""
        with psycopg.connect(self.auth_admin) as connection:
            connection.execute(query.encode(), parameters)
