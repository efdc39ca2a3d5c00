"""What the four asset ops share: their services, their worker, their errors and their metadata.

Belongs here: the step from a Dagster context to a `pipeline` use case and back. Does not: what an op does.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial

import dagster as dg

from fltr_pipeline.errors import FltrError, SchemaDrift, TransientError
from fltr_pipeline.failures import advice
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.moves import follow_departures
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.setup import ground
from fltr_pipeline.pipeline.stage import StageRun, StageWork
from fltr_pipeline.pipeline.worker import Report, Worker
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.schema.verify import VerificationReport, verify_auth, verify_fltr

_RETRIES = 3
_FIRST_RETRY_SECONDS = 5.0
_FAILURES_SHOWN = 200


class WorkConfig(dg.Config):
    """How much one op does."""

    max_documents: int = 1_000_000
    """Stop after this many documents; the sensor goes on with the rest."""


class ReprocessConfig(WorkConfig):
    """What to do again before working on what waits."""

    mode: ReprocessMode = ReprocessMode.stale
    """Each includes the ones before it: `pending` (only what waits), `failed`, `stale` (made with another
    configuration), `all`."""
    retryable_failures_only: bool = False
    """Of the failed documents, only those whose failure was not their own: what a backfill may mend."""
    charge: bool = False
    """Charge the redo of ready documents: for a redo that the customer asked for. One that we cause is free."""


def services_of(
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> Services:
    """What the resources vend, as the use cases take it."""
    return Services(Settings(), fltr.engine(), credits.ledger(), milvus.vectors(), blobs.blobs(), embedder.model())


def worker_of(context: dg.AssetExecutionContext, services: Services) -> Worker:
    """This run, as the holder of leases."""
    settings = services.settings
    return Worker(services.fltr, context.run.run_id, settings.lease_seconds, settings.stall_seconds)


def run_stage(
    context: dg.AssetExecutionContext, services: Services, billing: Billing, work: StageWork, max_documents: int
) -> Report:
    """Work on the partition's dataset at one stage, through reserve and settle."""
    report = StageRun(
        fltr=services.fltr, billing=billing, work=work, worker=worker_of(context, services),
        ground=partial(ground, services, context.partition_key), batch_size=services.settings.batch_size,
        max_attempts=services.settings.max_attempts, charge_user_errors=services.settings.charge_user_errors,
    ).run(max_documents)  # fmt: skip
    if report.expected and not report.claimed:
        follow_departures(services, context.partition_key, max_documents)  # for them, run after run would be launched
    return report


@contextmanager
def ingesting(context: dg.AssetExecutionContext) -> Iterator[None]:
    """`typed_failures` of an asset op, which does nothing at all where a schema has harmful drift.

    The jobs have the checks before the ops; an asset that somebody materialises alone has only this.
    """
    with typed_failures(context.op_execution_context):
        _require_schemas(context.run.run_id)
        yield


def blocked(report: VerificationReport) -> str | None:
    """Why nothing is ingested into a database, or from it; None where it has no harmful drift."""
    return None if report.conforms else f"ingest is blocked: {report.drift}"


def drift() -> str | None:
    """Why nothing is ingested, of the first database that has harmful drift; None where neither has."""
    endpoints = Settings().endpoints
    fltr, auth = endpoints.database_url.get_secret_value(), endpoints.auth_database_url.get_secret_value()
    return blocked(verify_fltr(fltr)) or blocked(verify_auth(auth))


@lru_cache(maxsize=1)
def _require_schemas(run_id: str) -> None:
    """Once for each run, whose ops share a process."""
    if reason := drift():
        raise SchemaDrift(reason)


@contextmanager
def typed_failures(context: dg.OpExecutionContext | None = None) -> Iterator[None]:
    """Give Dagster our errors by their type: a transient one is retried with backoff, any other ends the step at once.

    The type decides, so there is no retry policy: it would retry what is permanent, and bugs.
    """
    try:
        yield
    except TransientError as error:
        if context is None or context.retry_number >= _RETRIES:
            raise dg.Failure(description=str(error)) from error
        context.log.warning("%s", error)
        wait = _FIRST_RETRY_SECONDS * 2**context.retry_number
        raise dg.RetryRequested(max_retries=_RETRIES, seconds_to_wait=wait) from error
    except FltrError as error:
        raise dg.Failure(description=str(error)) from error


def metadata_of(report: Report, **more: int) -> dict[str, dg.MetadataValue]:
    """Numbers that the UI plots over time, and the failures as a table."""
    numbers: dict[str, int] = {
        "documents_done": report.done,
        "documents_failed": len(report.failures),
        "documents_awaiting_credits": report.awaiting_credits,
        "documents_lost": report.lost,
        "documents_put_back": report.put_back,
        "credits_reserved": report.credits_reserved,
        "credits_charged": report.credits_charged,
        "credits_returned": report.credits_returned,
        **report.counts,
        **more,
    }
    metadata: dict[str, dg.MetadataValue] = {name: dg.MetadataValue.int(n) for name, n in numbers.items()}
    metadata["seconds"] = dg.MetadataValue.float(round(report.seconds, 3))
    metadata["documents_per_second"] = dg.MetadataValue.float(round(report.done / max(report.seconds, 1e-9), 3))
    if report.failures:
        shown = report.failures[:_FAILURES_SHOWN]
        metadata["failures"] = table(
            ("document", "code", "reason", "id"), [(f.filename, f.code, f.message, f.document_id) for f in shown]
        )
        counts = Counter(f.code for f in report.failures)
        metadata["failure_codes"] = table(
            ("code", "documents", "for the customer", "for the operator"),
            [(code, str(counts[code]), a.customer, a.operator) for code, a in advice(counts)],
        )
    return metadata


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> dg.TableMetadataValue:
    """Text in rows and columns, as the UI shows it."""
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows]
    return dg.MetadataValue.table(records, dg.TableSchema([dg.TableColumn(name) for name in columns]))
