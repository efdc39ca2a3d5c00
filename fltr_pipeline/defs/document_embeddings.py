"""Asset `document_embeddings`: vectors in Milvus, published; and the check that what was published is there."""

from collections.abc import Iterator

import dagster as dg

from fltr_pipeline.defs.op import WorkConfig, ingesting, metadata_of, run_stage, services_of
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.defs.processing_jobs import processing_jobs
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.pipeline.embed import Embed, sweep_datasets
from fltr_pipeline.pipeline.reconcile import Published, check_published
from fltr_pipeline.pipeline.reprocess import remaining
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource

PUBLISHED_CHECK = "published_chunks_are_in_milvus"
_KEYS_SHOWN = 20


@dg.asset(
    partitions_def=DATASET_PARTITIONS,
    deps=[processing_jobs],
    group_name="fltr",
    kinds={"milvus"},
    check_specs=[
        dg.AssetCheckSpec(
            PUBLISHED_CHECK,
            asset="document_embeddings",
            description="Every chunk of the documents that this run published is in Milvus, looked up by key.",
        )
    ],
)
def document_embeddings(
    context: dg.AssetExecutionContext,
    config: WorkConfig,
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> Iterator[dg.MaterializeResult[None]]:
    """Searchable documents: new chunks embedded, read back, settled and published; retired vectors swept."""
    with ingesting(context):
        services = services_of(fltr, credits, milvus, embedder, blobs)
        billing = credits.billing(services.fltr)
        services.vectors.ensure()
        report = run_stage(context, services, billing, Embed(services), config.max_documents)
        published = check_published(services, context.partition_key, report.finished)
        swept = _sweep(context, services)
        left = remaining(services, context.partition_key)
    yield dg.MaterializeResult(
        metadata=metadata_of(report, chunks_deleted=swept, documents_remaining=left),
        check_results=[_check(published)],
    )


def _sweep(context: dg.AssetExecutionContext, services: Services) -> int:
    """What Milvus keeps fails no work: it is still named, and the probe by the minute has `reconcile` go on with it."""
    swept = 0
    try:
        for gone in sweep_datasets(services, [context.partition_key]):
            swept += gone
    except StoreUnavailable as error:
        context.log.warning("retired vectors are left for `reconcile`: %s", error)
    return swept


def _check(published: Published) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=PUBLISHED_CHECK,
        passed=not published.missing,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "documents": published.documents,
            "chunks": published.chunks,
            "missing": len(published.missing),
            "missing_keys": sorted(published.missing)[:_KEYS_SHOWN],
        },
    )
