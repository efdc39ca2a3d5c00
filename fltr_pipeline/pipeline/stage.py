"""The path that every document op takes: claim, reserve, work, settle, hand on.

Belongs here: the loop over batches and the order within one. Does not: what a stage does (extract, plan, embed).
After a kill at any point another worker finds the same charge, the same hold and the staged result, and goes on.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Engine

from fltr_pipeline.credits.holds import HoldState, Payer
from fltr_pipeline.errors import DocumentError, TransientError
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline.billing import Billing, Quote, Refusal, Settlement
from fltr_pipeline.pipeline.worker import Report, Worker
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, generations
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim, Failure, Wait
from fltr_pipeline.stores.fltr.datasets import Dataset, FailedDocument

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one document: its price, or the error that ends its attempt."""

    claim: Claim
    price: int = 0
    used: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    error: DocumentError | None = None


class StageWork(Protocol):
    """One stage. `perform` must leave its results durable, under the claims' fences, before it returns."""

    op: Op
    stage: Stage

    def groups(self, claimed: Sequence[Claim]) -> Sequence[Sequence[Claim]]:
        """How much to pay for, do and hand on at a time."""

    def quote(self, claimed: Sequence[Claim]) -> Mapping[str, int]:
        """The most that each document can cost, in credits, by id."""

    def perform(self, claimed: Sequence[Claim], charges: Mapping[str, Charge]) -> Sequence[Result]:
        """Do the work; a document whose fence was lost is simply left out of the results.

        Raises:
            TransientError: a store does not answer; the batch is parked and tried again.
        """

    def finish(self, results: Sequence[Result]) -> set[str]:
        """After settling: hand the documents on; returns those that were still ours."""


@dataclass(frozen=True, slots=True)
class StageRun:
    """One op of one run on one dataset."""

    fltr: Engine
    billing: Billing
    work: StageWork
    worker: Worker
    dataset: Dataset
    payer: Payer | None
    """None: the dataset's owner no longer exists."""
    batch_size: int
    max_attempts: int

    def run(self, max_documents: int) -> Report:
        """Work until nothing waits at this stage, or `max_documents` were taken in hand."""
        report = Report()
        with self.worker.heartbeat():
            while (left := max_documents - report.claimed) > 0:
                claimed = self._claim(min(left, self.batch_size))
                if not claimed:
                    break
                before = report.claimed
                self._batch(claimed, report)
                report.lost += len(claimed) - (report.claimed - before)
                _LOG.info("%s: %s", self.work.op, report.summary())
        return report

    def _claim(self, limit: int) -> list[Claim]:
        with transaction(self.fltr) as tx:
            claimed = claims.claim(
                tx, dataset_id=self.dataset.id, stage=self.work.stage, run_id=self.worker.run_id,
                limit=limit, lease_seconds=self.worker.lease_seconds,
            )  # fmt: skip
            if self.work.stage is Stage.EXTRACT and claimed:
                generations.discard_others(tx, [c.document_id for c in claimed])
        return claimed

    def _batch(self, claimed: Sequence[Claim], report: Report) -> None:
        claimed = self._give_up(claimed, report)
        if self.payer is None:
            self._fail([Failure(c, HoldState.PAYER_GONE, _owner_gone(self.dataset)) for c in claimed], report)
            return
        groups = self.work.groups(claimed)
        for n, group in enumerate(groups):
            try:
                self._group(self.payer, group, report)
            except TransientError as error:
                with transaction(self.fltr) as tx:
                    claims.retry_later(tx, [c for rest in groups[n:] for c in rest], str(error))
                raise

    def _group(self, payer: Payer, claimed: Sequence[Claim], report: Report) -> None:
        quotes = self.work.quote(claimed)
        reservation = self.billing.reserve(
            self.work.op, self.dataset.id, payer,
            [Quote(c.document_id, c.generation, c.fence, quotes[c.document_id] if c.billable else 0, c.job_id)
             for c in claimed if c.document_id in quotes],
        )  # fmt: skip
        report.credits_reserved += reservation.reserved
        self._refuse(claimed, reservation.refused, report)
        granted = [c for c in claimed if c.document_id in reservation.granted]
        if granted:
            results = self.work.perform(granted, reservation.granted)
            self._settle(results, reservation.granted, report)

    def _settle(self, results: Sequence[Result], charges: Mapping[str, Charge], report: Report) -> None:
        settled = self.billing.settle(
            [
                Settlement(
                    charges[r.claim.document_id], 0 if r.error else r.price, r.used, r.error.code if r.error else "done"
                )
                for r in results
            ]
        )
        report.credits_charged += settled.charged
        report.credits_returned += settled.returned
        self._refuse([r.claim for r in results], settled.refused, report)
        unpaid = {r.subject_id for r in settled.refused}
        done = [r for r in results if r.error is None and r.claim.document_id not in unpaid]
        ours = self.work.finish(done) if done else set()
        report.done += len(ours)
        for result in done:
            if result.claim.document_id in ours:
                report.counts.update(Counter(result.counts))
        self._fail([Failure(r.claim, r.error.code, str(r.error)) for r in results if r.error], report)

    def _give_up(self, claimed: Sequence[Claim], report: Report) -> list[Claim]:
        """Fail the documents whose attempts ended with a store's error, or a worker's death, too many times."""
        spent = [c for c in claimed if c.attempts >= self.max_attempts]
        message = (
            f"gave up after {self.max_attempts} attempts that an error of ours ended; mend the cause and reprocess it"
        )
        self._fail([Failure(c, "gave_up", f"{c.filename}: {message}") for c in spent], report)
        return [c for c in claimed if c.attempts < self.max_attempts]

    def _refuse(self, claimed: Sequence[Claim], refused: Sequence[Refusal], report: Report) -> None:
        """Let documents wait for credits; without a payer there is nothing to wait for."""
        by_id = {c.document_id: c for c in claimed}
        poor = [r for r in refused if r.state is HoldState.INSUFFICIENT]
        if poor:
            waits = [Wait(by_id[r.subject_id], r.amount, r.pot.kind, r.pot.id) for r in poor]
            with transaction(self.fltr) as tx:
                report.awaiting_credits += len(claims.wait_for_credits(tx, waits))
            _LOG.warning(
                "%s: %d documents await credits of %s %s", self.work.op, len(poor), poor[0].pot.kind, poor[0].pot.id
            )
        gone = [r for r in refused if r.state is not HoldState.INSUFFICIENT]
        self._fail([Failure(by_id[r.subject_id], r.state, _owner_gone(self.dataset)) for r in gone], report)

    def _fail(self, failures: Sequence[Failure], report: Report) -> None:
        if not failures:
            return
        with transaction(self.fltr) as tx:
            ended = claims.fail(tx, failures)
        for f in failures:
            if f.claim.document_id in ended:
                _LOG.warning("document %s failed (%s): %s", f.claim.document_id, f.code, f.message)
                report.failures.append(FailedDocument(f.claim.document_id, f.claim.filename, f.code, f.message))


def _owner_gone(dataset: Dataset) -> str:
    return (
        f"the owner {dataset.user_id} of dataset {dataset.name!r} has no account or no balance in fltr_auth: "
        "nobody pays for this document; delete the dataset or give it an owner"
    )
