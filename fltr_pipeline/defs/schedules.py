"""What happens by the clock."""

import dagster as dg

from fltr_pipeline.defs.jobs import reprocess_dataset, verify, work_config
from fltr_pipeline.defs.op import services_of
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.reprocess import datasets_to_backfill
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource
from fltr_pipeline.settings import Settings


@dg.schedule(
    job=reprocess_dataset,
    cron_schedule="0 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Redoes stale documents, and failures that were not the document's own.",
)
def nightly_backfill(
    context: dg.ScheduleEvaluationContext,
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> list[dg.RunRequest] | dg.SkipReason:
    """One run per dataset with stale or retryable documents."""
    found = datasets_to_backfill(services_of(fltr, credits, milvus, embedder, blobs))
    if not found:
        return dg.SkipReason("every document is up to date")
    context.instance.add_dynamic_partitions(str(DATASET_PARTITIONS.name), found)
    # Bounded: the run queues everything and does a part of it; the sensor goes on, as with any backlog.
    config = work_config(ReprocessMode.stale, Settings().run_documents, retryable_failures_only=True)
    return [dg.RunRequest(partition_key=i, run_config=config) for i in found]


daily_verification = dg.ScheduleDefinition(
    name="daily_verification",
    job=verify,
    cron_schedule="30 2 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
