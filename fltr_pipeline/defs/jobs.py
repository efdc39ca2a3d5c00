"""The jobs: one run is one worker on one dataset, all four assets in it."""

import dagster as dg

from fltr_pipeline.defs.checks import COLLECTION, LEDGER_KEY
from fltr_pipeline.defs.datasets import SCHEMAS, datasets
from fltr_pipeline.defs.document_embeddings import document_embeddings
from fltr_pipeline.defs.documents import documents
from fltr_pipeline.defs.processing_jobs import processing_jobs
from fltr_pipeline.models import ReprocessMode

ASSETS = [datasets, documents, processing_jobs, document_embeddings]

LEDGER = dg.AssetSpec(
    LEDGER_KEY,
    description="The ledger. The web application's table; each of the four ops appends its holds and closes.",
    group_name="fltr_auth",
    kinds={"postgres"},
    deps=ASSETS,
)

_SCHEMA_CHECKS = dg.AssetSelection.checks_for_assets(*(spec.key for spec in SCHEMAS))

_WORK = dg.AssetSelection.assets(*ASSETS) | _SCHEMA_CHECKS

ingest = dg.define_asset_job(
    "ingest",
    selection=_WORK,
    description="Works on what waits in a dataset. Launched by the sensor `uploaded_documents`.",
)

reprocess_dataset = dg.define_asset_job(
    "reprocess_dataset",
    selection=_WORK,
    description=(
        "Queues a dataset's documents again and works until nothing is left. Mode (each includes the ones before it): "
        "pending, failed, stale (the default), all."
    ),
)

verify = dg.define_asset_job(
    "verify",
    selection=_SCHEMA_CHECKS | dg.AssetSelection.checks_for_assets(COLLECTION.key, LEDGER_KEY),
    description=(
        "Compares both databases with their specification, the manifest with Milvus, key by key, and each balance of "
        "the ledger with its rows."
    ),
)


def work_config(mode: ReprocessMode, max_documents: int, *, retryable_failures_only: bool = False) -> dict[str, object]:
    """Run config of the first two jobs for one bounded run."""
    bound = {"max_documents": max_documents}
    first = bound | {"mode": mode.name, "retryable_failures_only": retryable_failures_only}
    return {
        "ops": {
            "documents": {"config": first},
            "processing_jobs": {"config": bound},
            "document_embeddings": {"config": bound},
        }
    }
