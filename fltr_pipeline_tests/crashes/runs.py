"""What is done to a dataset from upload to search, without Dagster: runs, uploads, and what the reconciler does.

Belongs here: whole use cases, as functions that travel to another process. Does not: the scene before them (path).
"""

import uuid

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reprocess import requeue
from fltr_pipeline.pipeline.setup import ground, set_up
from fltr_pipeline.pipeline.stage import StageRun, StageWork
from fltr_pipeline.pipeline.sweeper import Report, sweep_all
from fltr_pipeline.pipeline.worker import Worker
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.crashes.hands import Hands


def run(hands: Hands, dataset: Dataset, mode: ReprocessMode = ReprocessMode.pending) -> None:
    """What a run does on a dataset: set-up, requeue by its mode (charged), the three document ops, the sweep."""
    services = hands.services
    with transaction(services.fltr) as tx:
        if datasets.get(tx, dataset.id) is None:
            return
    worker = Worker(services.fltr, f"{hands.name}-{uuid.uuid4().hex}", services.settings.lease_seconds)
    set_up(services, hands.billing, worker, ground(services, dataset.id))
    requeue(services, dataset.id, mode, charge=True)
    with Extract(services) as extract:
        for work in (extract, Plan(services), Embed(services)):
            _stage(hands, dataset, worker, work)
    sweep(services, dataset.id)


def _stage(hands: Hands, dataset: Dataset, worker: Worker, work: StageWork) -> None:
    base, settings = ground(hands.services, dataset.id), hands.services.settings
    StageRun(
        fltr=hands.services.fltr, billing=hands.billing, work=work, worker=worker, dataset=base.dataset,
        payer=base.payer, batch_size=settings.batch_size, max_attempts=settings.max_attempts,
        charge_user_errors=settings.charge_user_errors,
    ).run(max_documents=100)  # fmt: skip


def upload(hands: Hands, dataset: Dataset, filename: str, data: bytes) -> None:
    """What an uploader does: the blob, then the row."""
    services = hands.services
    with transaction(services.fltr) as tx:
        known = datasets.find_documents(tx, dataset.id, [filename])
    document_id = known.get(filename, str(uuid.uuid4()))
    services.blobs.put(dataset.id, document_id, filename, data)
    with transaction(services.fltr) as tx:
        datasets.upload(tx, dataset.id, [(document_id, filename)])


def reconcile(hands: Hands) -> Report:
    """One pass of the reconciler, all keys listed; what it found and ended."""
    return sum(sweep_all(hands.services, hands.billing, list_keys=True), Report())
