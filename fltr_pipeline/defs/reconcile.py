"""Job `reconcile`, its probe by the minute and its schedule by night.

Belongs here: the step from Dagster to `pipeline.sweeper`. Does not: what is ended, and how.
"""

from collections import Counter

import dagster as dg

from fltr_pipeline.defs.coordinator import RECONCILE
from fltr_pipeline.defs.op import services_of, table, typed_failures
from fltr_pipeline.defs.pauses import paused
from fltr_pipeline.pipeline import sweeper
from fltr_pipeline.pipeline.sweeper import Report
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

_RECEIPTS_SHOWN = 200


class SweepConfig(dg.Config):
    """How far a pass goes."""

    list_keys: bool = True
    """Also list every key of the manifest and of Milvus, which takes as long as there are vectors."""
    after: str = ""
    """Without that: the id behind which to look at the documents."""


@dg.op(out=dg.Out(dg.Nothing))
def sweep_all(
    context: dg.OpExecutionContext,
    config: SweepConfig,
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> None:
    """What dead workers left, what is deleted, what the manifest and Milvus disagree on."""
    with typed_failures(context):
        services = services_of(fltr, credits, milvus, embedder, blobs)
        billing = credits.billing(services.fltr)
        report = Report()
        try:
            for ended in sweeper.sweep_all(services, billing, list_keys=config.list_keys, after=config.after):
                report += ended
        except Exception as error:  # a step that fails has no metadata
            context.log.warning("what the pass ended before it failed: %s", _in_words(report))
            if isinstance(error, sweeper.NotAllEnded):
                raise dg.Failure(description=str(error), allow_retries=False) from error
            raise
    context.add_output_metadata({**report.figures, **_receipts(report)})


@dg.job(
    name=RECONCILE,
    description=(
        "Ends what dead workers left, withdraws what is deleted and sweeps its vectors, compares the manifest with "
        "Milvus, key by key, and repairs what differs. May run at any time."
    ),
    tags={"dagster/priority": "2"},
)
def reconcile() -> None:
    """One pass."""
    sweep_all()


@dg.sensor(
    job_name=RECONCILE,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches `reconcile` when a lease ran out, a charge stayed open, or something was deleted or moved.",
)
def overdue_work(
    context: dg.SensorEvaluationContext,
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> dg.RunRequest | dg.SkipReason:
    """Indexed look-ups, and a look at the documents from where the last tick stopped. A pass under way is let be."""
    probed = sweeper.probe(services_of(fltr, credits, milvus, embedder, blobs), context.cursor or "")
    context.update_cursor(probed.next)
    if not probed.found:
        where = f"up to {probed.next}" if probed.next else "to the last"
        return dg.SkipReason(
            "no lease ran out, no charge stayed open; "
            f"looked at {probed.documents:,} documents, {where}: none was deleted or moved"
        )
    if context.instance.get_runs(dg.RunsFilter(job_name=RECONCILE, statuses=UNFINISHED), limit=1):
        return dg.SkipReason(f"a run of `reconcile` is at it: {probed.found}")
    if until := paused(context.instance, RECONCILE).get(""):
        return dg.SkipReason(
            f"{probed.found}; but `reconcile` failed: the next run is launched at {until:%H:%M:%S} UTC"
        )
    config = {"list_keys": False, "after": probed.next}
    return dg.RunRequest(run_config={"ops": {sweep_all.name: {"config": config}}})


nightly_reconcile = dg.ScheduleDefinition(
    name="nightly_reconcile",
    job=reconcile,
    cron_schedule="0 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Compares every key of the manifest with Milvus, and repairs what differs.",
)


def _in_words(report: Report) -> str:
    figures = {**report.figures, "receipts": len(report.receipts)}
    return ", ".join(f"{name}: {n}" for name, n in figures.items() if n) or "nothing"


def _receipts(report: Report) -> dict[str, dg.MetadataValue]:
    """Deletions whose vectors are gone; `pipeline.deletions` has all of them."""
    if not report.receipts:
        return {}
    documents, vectors, latest = Counter[tuple[str, str]](), Counter[tuple[str, str]](), {}
    for r in report.receipts:
        documents[r.dataset_id, r.cause] += 1
        vectors[r.dataset_id, r.cause] += r.vectors
        latest[r.dataset_id, r.cause] = r.verified_at
    shown = report.receipts[:_RECEIPTS_SHOWN]
    return {
        "deletions_by_dataset": table(
            ("dataset", "gone", "documents", "vectors", "verified absent at"),
            [(*key, str(n), str(vectors[key]), latest[key].isoformat()) for key, n in documents.items()],
        ),
        "deletions": table(
            ("document", "dataset", "gone", "vectors", "verified absent at"),
            [(r.document_id, r.dataset_id, r.cause, str(r.vectors), r.verified_at.isoformat()) for r in shown],
        ),
    }
