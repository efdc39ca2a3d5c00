"""The work of a run without Dagster: a dataset, uploads, the four ops one after another.

Belongs here: what several benchmarks do between two looks at the clock. Does not: timing tables, servers.
"""

import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from fltr_pipeline.embedded.postgres import SUPERUSER
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.setup import Ground, ground, set_up
from fltr_pipeline.pipeline.stage import StageRun, StageWork
from fltr_pipeline.pipeline.uploads import dataset_of, upload
from fltr_pipeline.pipeline.worker import Report, Worker
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.development import add_user
from fltr_pipeline.text.model import EmbeddingModel


class ConstantModel(EmbeddingModel):
    """The real tokenizer, a vector without work: what is left is the engine's own cost."""

    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0] + [0.0] * (self.dimension - 1)] * len(texts)


def new_dataset(services: Services, files: Sequence[tuple[str, Path]]) -> Ground:
    admin = as_role(services.settings.endpoints.auth_database_url.get_secret_value(), SUPERUSER)
    user_id = add_user(admin, f"{uuid.uuid4().hex}@example.org", "Bench", 100_000)
    dataset = dataset_of(services, user_id, uuid.uuid4().hex)
    for _ in upload(services, dataset, files):
        pass
    return ground(services, dataset.id)


def ingest(services: Services, base: Ground) -> dict[str, tuple[Report, float]]:
    """By stage: what was done, and the seconds that it took. The sweep is a stage of its own here."""
    settings = services.settings
    worker = Worker(services.fltr, uuid.uuid4().hex, settings.lease_seconds)
    billing = Billing(services.fltr, services.ledger, settings.prices, settings.charging)
    set_up(services, billing, worker, base)
    done: dict[str, tuple[Report, float]] = {}
    with Extract(services) as extract:
        works: list[StageWork] = [extract, Plan(services), Embed(services)]
        for work in works:
            run = StageRun(
                services.fltr,
                billing,
                work,
                worker,
                base.dataset,
                base.payer,
                settings.batch_size,
                settings.max_attempts,
            )
            started = time.perf_counter()
            done[work.stage.value] = run.run(1_000_000), time.perf_counter() - started
    started = time.perf_counter()
    swept = Report(done=sweep(services, base.dataset.id))
    done["sweep"] = swept, time.perf_counter() - started
    return done
