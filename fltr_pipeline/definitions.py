"""The code location: the only place that assembles. Loading it connects to nothing and reads no secret."""

from collections.abc import Mapping

import dagster as dg

from fltr_pipeline.defs import checks, jobs, reconcile, schedules, sensors
from fltr_pipeline.defs.datasets import OWNERS_TABLES, SCHEMAS
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource


def build_defs(overrides: Mapping[str, object] | None = None) -> dg.Definitions:
    """All definitions; `overrides` replaces resources by name (tests)."""
    return dg.Definitions(
        assets=[*OWNERS_TABLES, *SCHEMAS, *jobs.ASSETS, jobs.LEDGER, checks.COLLECTION],
        asset_checks=[*checks.SCHEMA_CHECKS, checks.manifest_matches_milvus, checks.ledger_balanced],
        jobs=[jobs.ingest, jobs.reprocess_dataset, jobs.verify, reconcile.reconcile],
        sensors=[sensors.uploaded_documents, reconcile.overdue_work],
        schedules=[schedules.nightly_backfill, schedules.daily_verification, reconcile.nightly_reconcile],
        resources={
            "fltr": FltrResource(),
            "credits": CreditsResource(),
            "milvus": MilvusResource(),
            "embedder": EmbedderResource(),
            "blobs": BlobsResource(),
            **(overrides or {}),
        },
        # A process per step would import everything four times; a run is one worker.
        executor=dg.in_process_executor,
    )


defs = build_defs()
