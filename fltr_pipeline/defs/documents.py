"""Asset `documents`: the text of every uploaded document, staged page by page."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import fmean

import dagster as dg
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, RETRY_NUMBER_TAG

from fltr_pipeline.defs.datasets import datasets
from fltr_pipeline.defs.op import ReprocessConfig, ingesting, metadata_of, run_stage, services_of, table
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.extract import Extract, Gap, Reading
from fltr_pipeline.pipeline.reprocess import requeue
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource

PAGES_CHECK = "pages_have_text"
OCR_CHECK = "ocr_is_sure"
_SHOWN = 200
_SURE = 0.8
"""Confidence below which OCR's text is likely to have wrong words."""
_REQUEUED_BY = "fltr/requeued_by"
"""Tag of a run: the run, itself or another that had it before, that has queued again what the mode names."""


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
            ReprocessMode.pending if _has_requeued(context) else config.mode,
            charge=config.charge,
            retryable_only=config.retryable_failures_only,
        )
        context.instance.add_run_tags(context.run.run_id, {_REQUEUED_BY: context.run.run_id})
        with Extract(services) as work:
            report = run_stage(context, services, billing, work, config.max_documents)
    yield dg.MaterializeResult(
        metadata=metadata_of(report, documents_requeued=requeued),
        check_results=[_check(work.gaps), _ocr_check(work.readings)],
    )


def _has_requeued(context: dg.AssetExecutionContext) -> bool:
    """Whether this is a retry, of the step or by Dagster of a run whose worker died: what failed since was tried."""
    run = context.instance.get_run_by_id(context.run.run_id) or context.run
    before = {run.run_id, run.tags.get(PARENT_RUN_ID_TAG)} if RETRY_NUMBER_TAG in run.tags else {run.run_id}
    return run.tags.get(_REQUEUED_BY) in before


def _check(gaps: Sequence[Gap]) -> dg.AssetCheckResult:
    shown = [(gap.filename, str(gap.pages), _ranges(gap.without_text)) for gap in gaps[:_SHOWN]]
    return dg.AssetCheckResult(
        check_name=PAGES_CHECK,
        passed=not gaps,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "documents": len(gaps),
            "pages": sum(len(gap.without_text) for gap in gaps),
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


def _ranges(numbers: Sequence[int]) -> str:
    """`1, 4-6` for 1, 4, 5, 6."""
    runs = (list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]))
    return ", ".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)
