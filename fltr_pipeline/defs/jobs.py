"""The jobs: one run is one worker on one dataset, all four assets in it."""

import dagster as dg

from fltr_pipeline.defs.datasets import datasets
from fltr_pipeline.defs.document_embeddings import document_embeddings
from fltr_pipeline.defs.documents import documents
from fltr_pipeline.defs.processing_jobs import processing_jobs
from fltr_pipeline.models import ReprocessMode

ASSETS = [datasets, documents, processing_jobs, document_embeddings]

LEDGER = dg.AssetSpec(
    ["fltr_auth", "credit_transactions"],
    description="The ledger. The web application's table; each of the four ops appends its holds and closes.",
    group_name="fltr_auth",
    kinds={"postgres"},
    deps=ASSETS,
)

ingest = dg.define_asset_job(
    "ingest",
    selection=dg.AssetSelection.assets(*ASSETS),
    description="Works on what waits in a dataset. Launched by the sensor `uploaded_documents`.",
)

reprocess_dataset = dg.define_asset_job(
    "reprocess_dataset",
    selection=dg.AssetSelection.assets(*ASSETS),
    description=(
        "Queues a dataset's documents again and works until nothing is left. Mode (each includes the ones before it): "
        "pending, failed, stale (the default), all."
    ),
)

verify_schemas = dg.define_asset_job(
    "verify_schemas",
    selection=dg.AssetSelection.checks_for_assets(datasets),
    description="Compares both databases with their specification.",
)


def work_config(mode: ReprocessMode, max_documents: int) -> dict[str, object]:
    """Run config of the first two jobs for one bounded run."""
    bound = {"config": {"max_documents": max_documents}}
    return {
        "ops": {
            "documents": {"config": {"mode": mode.name, "max_documents": max_documents}},
            "processing_jobs": bound,
            "document_embeddings": bound,
        }
    }
