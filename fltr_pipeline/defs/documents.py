"""Asset `documents`: the text of every uploaded document, staged page by page."""

import dagster as dg

from fltr_pipeline.defs.datasets import datasets
from fltr_pipeline.defs.op import ReprocessConfig, ingesting, metadata_of, run_stage, services_of
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.reprocess import requeue
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource


@dg.asset(partitions_def=DATASET_PARTITIONS, deps=[datasets], group_name="fltr", kinds={"postgres"})
def documents(
    context: dg.AssetExecutionContext,
    config: ReprocessConfig,
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> dg.MaterializeResult[None]:
    """Extracted text. First queues again what the mode names, then works on everything that waits."""
    with ingesting(context):
        services = services_of(fltr, credits, milvus, embedder, blobs)
        billing = credits.billing(services.fltr)
        requeued = requeue(
            services,
            context.partition_key,
            config.mode,
            charge=config.charge,
            retryable_only=config.retryable_failures_only,
        )
        with Extract(services) as work:
            report = run_stage(context, services, billing, work, config.max_documents)
    return dg.MaterializeResult(metadata=metadata_of(report, documents_requeued=requeued))
