"""The path that every document op takes: claim, reserve, work, settle, hand on.

Belongs here: the loop over batches and the order within one. Does not: what a stage does (extract, plan, embed).
After a kill at any point another worker finds the same charge, the same hold and the staged result, and goes on.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from sqlalchemy import Engine

from fltr_pipeline.credits.holds import HoldState, Payer
from fltr_pipeline.errors import (
    ConfigurationError,
    DocumentError,
    ForeignPayer,
    Inaccessible,
    InvalidAmount,
    LedgerConflict,
    Quarantined,
    SchemaDrift,
    StoreUnavailable,
    TransientError,
    UnsupportedCapability,
)
from fltr_pipeline.failures import RETRYABLE
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline.billing import Billing, Quote, Refusal, Settlement
from fltr_pipeline.pipeline.quarantine import GAVE_UP, Quarantine
from fltr_pipeline.pipeline.setup import Ground
from fltr_pipeline.pipeline.worker import Report, Worker, progressed
from fltr_pipeline.stores.database import reason, transaction
from fltr_pipeline.stores.fltr import claims, datasets, generations, leases
from fltr_pipeline.stores.fltr.charges import Charge, mark_refunding
from fltr_pipeline.stores.fltr.claims import Claim, Failure, Wait
from fltr_pipeline.stores.fltr.datasets import Dataset, FailedDocument

_LOG = logging.getLogger(__name__)
_NOT_THE_DOCUMENTS = (TransientError, ConfigurationError, SchemaDrift, UnsupportedCapability)
"""Errors that every document would meet: they end the op."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one document: the units it took, or the error that ends its attempt."""

    claim: Claim
    units: int = 0
    used: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    error: DocumentError | None = None


class StageWork(Protocol):
    """One stage. `perform` must leave its results durable, under the claims' fences, before it returns."""

    op: Op
    stage: Stage
    quarantine: Quarantine

    @property
    def counters(self) -> Sequence[str]:
        """What its results count; told as 0 where nothing was done."""

    def groups(self, claimed: Sequence[Claim]) -> Iterable[Sequence[Claim]]:
        """How much to pay for, do and hand on at a time; the next is asked for when the one before is done.

        What an attempt before was for may change its generation.

        Raises:
            StoreUnavailable: the batch is parked and tried again.
        """

    def quote(self, claimed: Sequence[Claim]) -> Mapping[str, int | DocumentError]:
        """The most units of the price list that each document can take, by id; or why it can't be looked at."""

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
    ground: Callable[[], Ground]
    """The dataset and who pays for it, asked anew for each batch: an op may take hours."""
    batch_size: int
    max_attempts: int
    charge_user_errors: bool = False

    def run(self, max_documents: int) -> Report:
        """Work until nothing waits at this stage, or `max_documents` were taken in hand."""
        report = Report(counts=Counter(dict.fromkeys(self.work.counters, 0)))
        base = self.ground()
        dataset = base.dataset
        with transaction(self.fltr) as tx:
            # The ops of a run follow one another: what it still holds, an earlier try of this op left behind.
            leases.expire_runs(tx, [self.worker.run_id])
            since = leases.clock(tx)
            ready = datasets.is_set_up(tx, dataset.id)
            report.expected = min(max_documents, datasets.waiting_at(tx, dataset.id, self.work.stage))
        if not ready and base.payer is not None:
            _LOG.warning("dataset %r is not set up, or that is not paid for: nothing is done in it", dataset.name)
            return report
        with self.worker.heartbeat():
            while (left := max_documents - report.claimed) > 0:
                claimed = self._claim(dataset, min(left, self.batch_size), since)
                if not claimed:
                    break
                before = report.claimed
                self._batch(claimed, report)
                report.lost += len(claimed) - (report.claimed - before)
        return report

    def _claim(self, dataset: Dataset, limit: int, since: datetime) -> list[Claim]:
        with transaction(self.fltr) as tx:
            claimed = claims.claim(
                tx, dataset_id=dataset.id, stage=self.work.stage, run_id=self.worker.run_id,
                limit=limit, lease_seconds=self.worker.lease_seconds, since=since,
            )  # fmt: skip
            if self.work.stage is Stage.EXTRACT and claimed:
                generations.discard_others(tx, [c.document_id for c in claimed])
        return claimed

    def _batch(self, claimed: Sequence[Claim], report: Report) -> None:
        rest = {c.document_id: c for c in claimed}
        try:
            base = self.ground()
            claimed = self._turn_away(self._give_up(claimed, report), report)
            if base.payer is None:
                self._fail_unpayable(claimed, base, report)
                return
            for group in self.work.groups(claimed):
                progressed()
                self._group(group, base, report)
                _LOG.info("%s: %s", self.work.op, report.summary())
                for claim in group:
                    del rest[claim.document_id]
        except BaseException as error:  # also the end of the run by an operator: what is in hand is put back
            with suppress(StoreUnavailable), transaction(self.fltr) as tx:
                claims.retry_later(tx, list(rest.values()), str(error) or type(error).__name__, self.worker.run_id)
            raise

    def _group(self, group: Sequence[Claim], base: Ground, report: Report) -> None:
        """One document that breaks our own code must not take the others along: then each is tried by itself."""
        try:
            if paid := self._with_payer(group, base, report):
                self._pay_and_perform(paid, base.dataset, report)
        except _NOT_THE_DOCUMENTS:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told with the document's name
            if len(group) == 1 and isinstance(error, InvalidAmount | LedgerConflict):
                self._fail_for_our_fault([Failure(group[0], error.code, f"{group[0].filename}: {error}")], report)
            elif len(group) == 1:
                _LOG.exception("%s of %s broke", self.work.op, group[0].filename)
                message = f"{group[0].filename}: {self.work.op} broke with {type(error).__name__}: {reason(error)}"
                self._fail_for_our_fault([Failure(group[0], "internal_error", message)], report)
            else:
                with transaction(self.fltr) as tx:
                    again = claims.refence(tx, group)
                for claim in again:
                    self._group([claim], base, report)

    def _with_payer(self, claimed: Sequence[Claim], base: Ground, report: Report) -> list[tuple[Claim, Payer]]:
        """Who pays for each: the pool of the API key that it was uploaded with, else the dataset's owner or team."""
        keys = {c.api_key_id for c in claimed if c.api_key_id is not None}
        payers: Mapping[str | None, Payer | None] = {None: base.payer}
        if keys:
            payers = self.billing.ledger.payers(base.dataset.user_id, keys)
        if not payers:
            self._fail_unpayable(claimed, base, report)
            return []
        paid = [(c, payer) for c in claimed if (payer := payers.get(c.api_key_id)) is not None]
        foreign = [c for c in claimed if payers.get(c.api_key_id) is None]
        self._fail([Failure(c, ForeignPayer.code, _foreign_key(c, base.dataset)) for c in foreign], report)
        return paid

    def _pay_and_perform(self, paid: Sequence[tuple[Claim, Payer]], dataset: Dataset, report: Report) -> None:
        claimed = [claim for claim, _ in paid]
        units = self.work.quote(claimed)
        quotes = [
            Quote(c.document_id, c.generation, c.fence, most, c.billable, payer, c.job_id, self.worker.run_id)
            for c, payer in paid if isinstance(most := units.get(c.document_id), int)
        ]  # fmt: skip
        self._end([(c, e) for c in claimed if isinstance(e := units.get(c.document_id), DocumentError)], report)
        reservation = self.billing.reserve(self.work.op, dataset.id, quotes)
        report.credits_reserved += reservation.reserved
        self._refuse(claimed, reservation.refused, dataset, report)
        granted = [c for c in claimed if c.document_id in reservation.granted]
        if granted:
            results = self.work.perform(granted, reservation.granted)
            self._settle(results, reservation.granted, dataset, report)

    def _settle(
        self, results: Sequence[Result], charges: Mapping[str, Charge], dataset: Dataset, report: Report
    ) -> None:
        settled = self.billing.settle(
            [
                Settlement(
                    charges[r.claim.document_id],
                    self._units(r),
                    r.used,
                    r.error.code if r.error else "done",
                    r.claim.fence,
                )
                for r in results
            ]
        )
        report.credits_charged += settled.charged
        report.credits_returned += settled.returned
        self._refuse([r.claim for r in results], settled.refused, dataset, report)
        done = [r for r in results if r.error is None and r.claim.document_id not in settled.unpaid]
        ours = self.work.finish(done) if done else set()
        report.done += len(ours)
        report.finished += sorted(ours)
        for result in done:
            if result.claim.document_id in ours:
                report.counts.update(Counter(result.counts))
        self._end([(r.claim, r.error) for r in results if r.error], report)

    def _end(self, errors: Sequence[tuple[Claim, DocumentError]], report: Report) -> None:
        """End the attempts, and fail those documents that another attempt would not get further with."""
        ended = [(Failure(c, e.code, str(e)), e) for c, e in errors]
        self._fail([f for f, e in ended if e.user_error], report)
        spent = self._put_back([f for f, e in ended if isinstance(e, Inaccessible)], report)
        ours = [f for f, e in ended if not (e.user_error or isinstance(e, Inaccessible))]
        self._fail_for_our_fault(ours + spent, report)

    def _put_back(self, failures: Sequence[Failure], report: Report) -> list[Failure]:
        """Park what may be readable later, each document by itself; returns what was tried often enough."""
        if not failures:
            return []
        with transaction(self.fltr) as tx:
            tries = claims.put_back(tx, failures)
        spent = [f for f in failures if tries.get(f.claim.document_id, 0) >= Inaccessible.tries]
        waiting = [f for f in failures if f.claim.document_id in tries and f not in spent]
        for f in waiting:
            _LOG.warning("document %s is tried again later (%s): %s", f.claim.document_id, f.code, f.message)
        report.put_back += len(waiting)
        return spent

    def _units(self, result: Result) -> int:
        """What an attempt took; one that failed by the customer's own file takes a unit, if that is to be charged.

        What another night may mend, such as a limit that was reached, takes none: it would take one each night.
        """
        error = result.error
        user_error = error is not None and error.user_error and error.code not in RETRYABLE
        return 1 if user_error and self.charge_user_errors else result.units

    def _give_up(self, claimed: Sequence[Claim], report: Report) -> list[Claim]:
        """Fail the documents whose workers died too many times; their contents are not tried again."""
        spent = [c for c in claimed if c.attempts >= self.max_attempts]
        for claim in spent:
            self.work.quarantine.workers_died(claim)
        message = f"gave up after {self.max_attempts} workers died at it; mend the cause and reprocess it"
        self._fail_for_our_fault([Failure(c, GAVE_UP, f"{c.filename}: {message}") for c in spent], report)
        return [c for c in claimed if c.attempts < self.max_attempts]

    def _turn_away(self, claimed: Sequence[Claim], report: Report) -> list[Claim]:
        """Fail those whose content was quarantined since they were extracted (extraction itself knows the bytes)."""
        poison = {} if self.work.stage is Stage.EXTRACT else self.work.quarantine.of_extracted(claimed)
        failures = [
            Failure(c, Quarantined.code, str(poison[c.document_id])) for c in claimed if c.document_id in poison
        ]
        self._fail_for_our_fault(failures, report)
        return [c for c in claimed if c.document_id not in poison]

    def _refuse(self, claimed: Sequence[Claim], refused: Sequence[Refusal], dataset: Dataset, report: Report) -> None:
        """Let documents wait for credits; without a payer there is nothing to wait for, and earlier steps go back."""
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
        self._fail_for_our_fault([Failure(by_id[r.subject_id], r.state, _gone(r, dataset)) for r in gone], report)

    def _fail_unpayable(self, claimed: Sequence[Claim], base: Ground, report: Report) -> None:
        """Its owner is gone; whoever paid for earlier steps may be another, and has nothing from them."""
        failures = [Failure(c, HoldState.PAYER_GONE, _owner_gone(base.dataset)) for c in claimed]
        self._fail_for_our_fault(failures, report)

    def _fail_for_our_fault(self, failures: Sequence[Failure], report: Report) -> None:
        """What the document's ops were charged goes back, too.

        That is decided with the failure, under the fence: the work of those who took a document over is not ours to
        give back, and after a kill a sweep does what is left.
        """
        if ended := self._fail(failures, report, refund=True):
            report.credits_returned += self.billing.give_up([(f.claim.document_id, f.claim.generation) for f in ended])

    def _fail(self, failures: Sequence[Failure], report: Report, *, refund: bool = False) -> list[Failure]:
        """End the attempts; returns those that were still ours to end."""
        if not failures:
            return []
        with transaction(self.fltr) as tx:
            ids = claims.fail(tx, failures)
            ended = [f for f in failures if f.claim.document_id in ids]
            if refund:
                mark_refunding(tx, [(f.claim.document_id, f.claim.generation) for f in ended])
            generations.discard_others(tx, list(ids))
        for f in ended:
            _LOG.warning("document %s failed (%s): %s", f.claim.document_id, f.code, f.message)
            report.failures.append(FailedDocument(f.claim.document_id, f.claim.filename, f.code, f.message))
        return ended


def grouped(claimed: Sequence[Claim], sizes: Mapping[str, int], room: Callable[[], int]) -> Iterator[Sequence[Claim]]:
    """Consecutive claims whose sizes add up to at most `room`, asked anew for each group, or one that is larger."""
    start = 0
    while start < len(claimed):
        left, end = room() - sizes.get(claimed[start].document_id, 0), start + 1
        while end < len(claimed) and (size := sizes.get(claimed[end].document_id, 0)) <= left:
            left, end = left - size, end + 1
        yield claimed[start:end]
        start = end


def _gone(refusal: Refusal, dataset: Dataset) -> str:
    if refusal.state is HoldState.PAYER_GONE or refusal.pot.kind == "user":
        return _owner_gone(dataset)
    return (
        f"the balance of {refusal.pot.name} in fltr_auth, which was to pay for this document, was deleted: "
        "reprocess it, and whoever pays now is asked"
    )


def _foreign_key(claim: Claim, dataset: Dataset) -> str:
    return (
        f"{claim.filename}: was uploaded with an API key ({str(claim.api_key_id)[:12]}…) of another account than that "
        f"of the owner {dataset.user_id} of dataset {dataset.name!r}: upload it with a key of theirs, or without one"
    )


def _owner_gone(dataset: Dataset) -> str:
    return (
        f"the owner {dataset.user_id} of dataset {dataset.name!r} has no account or no balance in fltr_auth: "
        "nobody pays for this document; delete the dataset or give it an owner"
    )
