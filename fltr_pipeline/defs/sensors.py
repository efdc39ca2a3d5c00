"""The sensor that picks up uploaded documents. It reads only: the UI's preview executes it too."""

from collections import Counter

import dagster as dg

from fltr_pipeline.credits.holds import Pot
from fltr_pipeline.defs.jobs import ingest, work_config
from fltr_pipeline.defs.op import drift
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.defs.pauses import paused
from fltr_pipeline.defs.reconcile import UNFINISHED
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.dispatch import runs_to_launch, waiting_documents
from fltr_pipeline.resources import CreditsResource, FltrResource
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets as store

_FIRST = {"dagster/priority": "1"}
"""Before backfills in Dagster's queue, which is first in, first out."""
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_NAME_SHOWN = 100  # a run's tags share a row of 2.7 KB


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
    """Compare what waits with what is in flight. No cursor and no run key: a run that failed is launched again.

    Where it failed because a schema has harmful drift, none is launched until that is gone.
    """
    settings = Settings()
    with transaction(fltr.engine()) as tx:
        backlog, awaiting = store.backlog(tx), store.awaiting(tx)
    spendable = credits.ledger().spendable({Pot(a.pot_kind, a.pot_id) for a in awaiting}) if awaiting else {}
    waiting = waiting_documents(backlog, awaiting, spendable)
    if not waiting:
        return dg.SkipReason("no document waits" if not awaiting else "the documents that wait await credits")
    if last_failed(context.instance) and (reason := drift()):
        return dg.SkipReason(f"{sum(b.waiting for b in waiting)} documents wait; {reason}")
    failed = paused(context.instance, ingest.name)
    chosen = runs_to_launch(
        [b for b in waiting if b.dataset_id not in failed],
        in_flight(context.instance),
        per_run=settings.run_documents,
        max_in_flight=settings.max_concurrent_runs,
    )
    if not chosen:
        pauses = [failed[b.dataset_id] for b in waiting if b.dataset_id in failed]
        pausing = f", or failed; the next is tried at {min(pauses):%H:%M:%S} UTC" if pauses else ""
        return dg.SkipReason(f"{sum(b.waiting for b in waiting)} documents wait; enough runs are in flight{pausing}")
    config = work_config(ReprocessMode.pending, settings.run_documents)
    names = {b.dataset_id: b.name[:_NAME_SHOWN] for b in waiting}
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(partition_key=i, run_config=config, tags=_FIRST | {"dataset": names[i]}) for i in chosen
        ],
        dynamic_partitions_requests=[DATASET_PARTITIONS.build_add_request(sorted(set(chosen)))],
    )


def in_flight(instance: dg.DagsterInstance) -> Counter[str]:
    """Unfinished runs of `ingest` by dataset. Backfills and runs by hand don't keep new uploads waiting."""
    runs = instance.get_runs(dg.RunsFilter(job_name=ingest.name, statuses=UNFINISHED))
    return Counter(run.tags["dagster/partition"] for run in runs if "dagster/partition" in run.tags)


def last_failed(instance: dg.DagsterInstance) -> bool:
    """Whether the latest run of `ingest` that has ended failed."""
    runs = instance.get_runs(dg.RunsFilter(job_name=ingest.name, statuses=_ENDED), limit=1)
    return any(run.status is dg.DagsterRunStatus.FAILURE for run in runs)
