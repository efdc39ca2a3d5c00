"""Job `reconcile` and the probe that launches it: what dead workers left is ended within a minute of its lease.

Belongs here: the step from Dagster to `pipeline.expiry`. Does not: what is ended, and how.
"""

from dataclasses import asdict

import dagster as dg

from fltr_pipeline.defs.coordinator import RECONCILE
from fltr_pipeline.defs.op import services_of, typed_failures
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dg.op(out=dg.Out(dg.Nothing))
def end_what_dead_workers_left(
    context: dg.OpExecutionContext,
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> None:
    """Leases that ran out, charges that nobody will close, holds that no charge stands for."""
    with typed_failures(context):
        services = services_of(fltr, credits, milvus, embedder, blobs)
        swept = expiry.sweep(services, credits.billing(services.fltr), orphans=True)
    context.add_output_metadata(asdict(swept))


@dg.job(
    name=RECONCILE,
    description="Ends what dead workers left: settles what was delivered, releases the rest. May run at any time.",
    tags={"dagster/priority": "2"},
)
def reconcile() -> None:
    """One sweep."""
    end_what_dead_workers_left()


@dg.sensor(
    job_name=RECONCILE,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches `reconcile` when a lease ran out or a charge stayed open.",
)
def overdue_work(
    context: dg.SensorEvaluationContext,
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> dg.RunRequest | dg.SkipReason:
    """Two indexed look-ups; a sweep under way is left to its work."""
    if not expiry.overdue(services_of(fltr, credits, milvus, embedder, blobs)):
        return dg.SkipReason("no lease ran out and no charge stayed open")
    if context.instance.get_runs(dg.RunsFilter(job_name=RECONCILE, statuses=UNFINISHED), limit=1):
        return dg.SkipReason("a run of `reconcile` is at it")
    return dg.RunRequest()
