"""Asset `documents`: the text of every uploaded document, staged page by page."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from statistics import fmean

import dagster as dg
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, RETRY_NUMBER_TAG

from fltr_pipeline.defs.datasets import datasets
from fltr_pipeline.defs.op import ReprocessConfig, ingesting, metadata_of, run_stage, services_of, table
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.pipeline.extract import Extract, Gap, Gaps, Reading
from fltr_pipeline.pipeline.reprocess import requeue
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource

PAGES_CHECK = "pages_have_text"
OCR_CHECK = "ocr_is_sure"
_SHOWN = 200
_SURE = 0.8
"""Confidence below which OCR's text is likely to have wrong words."""


@dg.asset(
    partitions_def=DATASET_PARTITIONS,
    deps=[datasets],
    group_name="fltr",
    kinds={"postgres"},
    check_specs=[
        dg.AssetCheckSpec(
            PAGES_CHECK,
            asset="documents",
            description="Every page of the documents that this run read has text; one that has none may be a scan.",
        ),
        dg.AssetCheckSpec(
            OCR_CHECK,
            asset="documents",
            description=f"OCR was sure of every page that this run read with it: a confidence of {_SURE} or more.",
        ),
    ],
)
def documents(
    context: dg.AssetExecutionContext,
    config: ReprocessConfig,
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> Iterator[dg.MaterializeResult[None]]:
    """Extracted text. First queues again what the mode names, once in a run, then works on everything that waits."""
    with ingesting(context):
        services = services_of(fltr, credits, milvus, embedder, blobs)
        billing = credits.billing(services.fltr)
        requeued = requeue(
            services,
            context.partition_key,
            config.mode,
            charge=config.charge,
            retryable_only=config.retryable_failures_only,
            since=_first_try(context),
        )
        with Extract(services) as work:
            report = run_stage(context, services, billing, work, config.max_documents)
    yield dg.MaterializeResult(
        metadata=metadata_of(report, documents_requeued=requeued),
        check_results=[_check(work.gaps), _ocr_check(work.readings)],
    )


def _first_try(context: dg.AssetExecutionContext) -> datetime | None:
    """When the run began that this is a retry of, by Dagster or of the step; None of the first try itself.

    Dagster marks its own retries; who executes a run again by hand asks anew. By the worker's clock, not the
    database's; but it begins seconds before anything is queued.
    """
    instance, this = context.instance, context.run.run_id
    record = first = instance.get_run_record_by_id(this)
    while record is not None:
        first, tags = record, record.dagster_run.tags
        record = instance.get_run_record_by_id(tags[PARENT_RUN_ID_TAG]) if RETRY_NUMBER_TAG in tags else None
    if first is None or (first.dagster_run.run_id == this and context.retry_number == 0):
        return None
    return first.create_timestamp if first.start_time is None else datetime.fromtimestamp(first.start_time, UTC)


def _check(gaps: Gaps) -> dg.AssetCheckResult:
    shown = [(gap.filename, str(gap.pages), _without_text(gap)) for gap in gaps.first]
    return dg.AssetCheckResult(
        check_name=PAGES_CHECK,
        passed=not gaps.documents,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "documents": gaps.documents,
            "pages": gaps.pages,
            "without_text": table(("document", "pages", "without text"), shown),
        },
    )


def _ocr_check(readings: Sequence[Reading]) -> dg.AssetCheckResult:
    doubtful = [(r.filename, [p for p in r.pages if p.confidence < _SURE]) for r in readings]
    shown = [(filename, page) for filename, pages in doubtful for page in pages]
    confidences = [page.confidence for reading in readings for page in reading.pages]
    metadata: dict[str, dg.MetadataValue] = {
        "pages": dg.MetadataValue.int(len(confidences)),
        "doubtful": table(
            ("document", "page", "confidence"),
            [(name, str(p.page), f"{p.confidence:.2f}") for name, p in shown[:_SHOWN]],
        ),
    }
    if confidences:
        metadata["confidence"] = dg.MetadataValue.float(round(fmean(confidences), 3))
    return dg.AssetCheckResult(
        check_name=OCR_CHECK, passed=not shown, severity=dg.AssetCheckSeverity.WARN, metadata=metadata
    )


def _without_text(gap: Gap) -> str:
    more = gap.blank - len(gap.without_text)
    return _ranges(gap.without_text) + (f" and {more:,} more" if more else "")


def _ranges(numbers: Sequence[int]) -> str:
    """`1, 4-6` for 1, 4, 5, 6."""
    runs = (list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]))
    return ", ".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)
