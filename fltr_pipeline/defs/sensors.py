"""The sensor that picks up uploaded documents. It reads only: the UI's preview executes it too."""

from collections import Counter

import dagster as dg

from fltr_pipeline.credits.holds import Pot
from fltr_pipeline.defs.jobs import ingest, work_config
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.dispatch import runs_to_launch, waiting_documents
from fltr_pipeline.resources import CreditsResource, FltrResource
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets as store

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dg.sensor(
    job=ingest,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches runs for datasets in which documents wait, fairly across those who pay for them.",
)
def uploaded_documents(
    context: dg.SensorEvaluationContext,
    fltr: FltrResource,
    credits: CreditsResource,
) -> dg.SensorResult | dg.SkipReason:
    """Compare what waits with what is in flight. No cursor and no run key: a run that failed is launched again."""
    settings = Settings()
    with transaction(fltr.engine()) as tx:
        backlog, awaiting = store.backlog(tx), store.awaiting(tx)
    balances = credits.ledger().balances({Pot(a.pot_kind, a.pot_id) for a in awaiting}) if awaiting else {}
    waiting = waiting_documents(backlog, awaiting, balances)
    if not waiting:
        return dg.SkipReason("no document waits" if not awaiting else "the documents that wait await credits")
    chosen = runs_to_launch(
        waiting, in_flight(context.instance), per_run=settings.run_documents, max_in_flight=settings.max_concurrent_runs
    )
    if not chosen:
        return dg.SkipReason(f"{sum(b.waiting for b in waiting)} documents wait; enough runs are in flight")
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(partition_key=i, run_config=work_config(ReprocessMode.pending, settings.run_documents))
            for i in chosen
        ],
        dynamic_partitions_requests=[DATASET_PARTITIONS.build_add_request(sorted(set(chosen)))],
    )


def in_flight(instance: dg.DagsterInstance) -> Counter[str]:
    """Unfinished runs by dataset."""
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED))
    return Counter(run.tags["dagster/partition"] for run in runs if "dagster/partition" in run.tags)
