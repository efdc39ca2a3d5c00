"""Asset `processing_jobs`: each document's plan, its chunks and which of them are new."""

import dagster as dg

from fltr_pipeline.defs.documents import documents
from fltr_pipeline.defs.op import WorkConfig, ingesting, metadata_of, run_stage, services_of
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource


@dg.asset(partitions_def=DATASET_PARTITIONS, deps=[documents], group_name="fltr", kinds={"postgres"})
def processing_jobs(
    context: dg.AssetExecutionContext,
    config: WorkConfig,
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> dg.MaterializeResult[None]:
    """Chunk manifests. A chunk whose text did not change keeps its vector."""
    with ingesting(context):
        services = services_of(fltr, credits, milvus, embedder, blobs)
        billing = credits.billing(services.fltr)
        report = run_stage(context, services, billing, Plan(services), config.max_documents)
    return dg.MaterializeResult(metadata=metadata_of(report))
