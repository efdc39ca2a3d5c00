"""Asset `document_embeddings`: vectors in Milvus, published; and the check that manifest and Milvus agree."""

from collections.abc import Iterator

import dagster as dg

from fltr_pipeline.defs.op import WorkConfig, metadata_of, run_stage, services_of, typed_failures
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.defs.processing_jobs import processing_jobs
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.reconcile import Drift, compare
from fltr_pipeline.pipeline.reprocess import remaining
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource

MANIFEST_CHECK = "manifest_matches_milvus"
_KEYS_SHOWN = 20


@dg.asset(
    partitions_def=DATASET_PARTITIONS,
    deps=[processing_jobs],
    group_name="fltr",
    kinds={"milvus"},
    check_specs=[
        dg.AssetCheckSpec(
            MANIFEST_CHECK,
            asset="document_embeddings",
            description="Postgres's manifest and Milvus hold the same keys for the dataset, listed one by one.",
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
    with typed_failures(context.op_execution_context):
        services = services_of(fltr, credits, milvus, embedder, blobs)
        billing = credits.billing(services.fltr)
        services.vectors.ensure()
        report = run_stage(context, services, billing, Embed(services), config.max_documents)
        swept = sweep(services, context.partition_key)
        drift = compare(services, context.partition_key)
        left = remaining(services, context.partition_key)
    yield dg.MaterializeResult(
        metadata=metadata_of(report, chunks_deleted=swept, chunks_live=drift.live, documents_remaining=left),
        check_results=[_check(drift)],
    )


def _check(drift: Drift) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=MANIFEST_CHECK,
        passed=drift.none,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "live": drift.live,
            "missing": len(drift.missing),
            "orphans": len(drift.orphans),
            "missing_keys": sorted(drift.missing)[:_KEYS_SHOWN],
            "orphan_keys": sorted(drift.orphans)[:_KEYS_SHOWN],
        },
    )
