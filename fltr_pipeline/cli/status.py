"""`fltr-pipeline status`: how datasets stand.

Belongs here: tables and lines. Does not: what is counted, or how the end is estimated (`pipeline.status`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fltr_pipeline.cli.output import AsJson, counted, out, plain, print_json, print_table, read_settings
from fltr_pipeline.failures import advice
from fltr_pipeline.models import DocumentStatus
from fltr_pipeline.pipeline.services import open_services
from fltr_pipeline.pipeline.status import Standing, overview, standing
from fltr_pipeline.pipeline.uploads import find_dataset
from fltr_pipeline.stores.fltr.datasets import DatasetCounts, FailedDocument

FAILURES_SHOWN = 20


def status(
    dataset: Annotated[str | None, typer.Argument(help="Name or id; all datasets if not given.")] = None,
    every_failure: Annotated[bool, typer.Option("--all", help=f"All failures, not only {FAILURES_SHOWN}.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show documents by status; of one dataset also its progress, what it waits for, and failures with reasons."""
    services = open_services(read_settings())
    if dataset is None:
        found = overview(services)
        print_json([_counts_as_data(c) for c in found]) if as_json else _print_overview(found)
        return
    limit = None if every_failure or as_json else FAILURES_SHOWN
    one = standing(services, find_dataset(services, dataset), failures=limit)
    print_json(_standing_as_data(one)) if as_json else _print_standing(out(), one)


def _counts_as_data(counts: DatasetCounts) -> dict[str, object]:
    return {"dataset": asdict(counts.dataset), "documents": counts.documents}


def _standing_as_data(one: Standing) -> dict[str, object]:
    return {
        **asdict(one.status),
        "documents_per_second": one.throughput,
        "failure_codes": {code: asdict(what) for code, what in advice(f.code for f in one.status.failures)},
        "outstanding": one.outstanding,
        "eta_seconds": one.eta_seconds,
        "in_flight": [asdict(w) for w in one.in_flight],
        "awaiting_credits": [
            {"pot_kind": a.pot_kind, "pot_id": a.pot_id, "documents": a.documents, "least": a.least}
            for a in one.awaiting
        ],
    }


def _print_overview(found: Sequence[DatasetCounts]) -> None:
    if not found:
        out().print("there is no dataset yet: `fltr-pipeline upload` creates one", markup=False)
        return
    statuses = _statuses({status: n for c in found for status, n in c.documents.items()})
    table = Table("dataset", "id", box=None, pad_edge=False)
    for name in statuses:
        table.add_column(_words(name), justify="right")
    for counts in found:
        numbers = (f"{counts.documents.get(name, 0):,}" for name in statuses)
        table.add_row(plain(counts.dataset.name), counts.dataset.id, *numbers)
    print_table(table)


def _words(status: str) -> str:
    return status.replace("_", " ")


def _statuses(counts: Mapping[str, int]) -> list[str]:
    """The known ones in their order, then whatever another writer invented."""
    known = [status.value for status in DocumentStatus]
    return known + sorted(set(counts) - set(known))


def _print_standing(console: Console, one: Standing) -> None:
    status = one.status
    console.print(plain(f"{status.dataset.name} ({status.dataset.id})"), style="bold")
    counts = [f"{status.documents[s]:,} {_words(s)}" for s in _statuses(status.documents) if s in status.documents]
    _line(console, "documents", ", ".join(counts) or "none")
    _line(
        console,
        "content",
        ", ".join((counted(status.pages, "page"), counted(status.chunks, "chunk"), counted(status.tokens, "token"))),
    )
    if status.ocr_confidence is not None:
        _line(console, "read by OCR", f"{counted(status.ocr_pages, 'page')}, confidence {status.ocr_confidence:.2f}")
    if one.pace is not None:
        over = _duration(one.pace.seconds)
        _line(
            console,
            "throughput",
            f"{one.throughput:.2f} documents/s ({counted(one.pace.documents, 'document')} in {over})",
        )
    for work in one.in_flight:
        words = f"{work.working:,} being worked on, {work.waiting:,} waiting, {work.retrying:,} to be tried again"
        _line(console, f"in {work.stage}", words)
    if one.outstanding:
        eta = f", about {_duration(one.eta_seconds)} at this pace" if one.eta_seconds is not None else ""
        _line(console, "to do", f"{counted(one.outstanding, 'document')}{eta}")
    for wait in one.awaiting:
        documents = counted(wait.documents, "document")
        words = f"{documents}, the cheapest needs {wait.least:,}; {wait.pot_kind} {wait.pot_id} pays"
        _line(console, "awaits credits", words)
    _print_failures(console, status.failures, status.documents.get(DocumentStatus.FAILED, 0))


def _line(console: Console, what: str, words: str) -> None:
    console.print(f"  {what + ':':<16}{words}", markup=False)


def _print_failures(console: Console, failures: Sequence[FailedDocument], total: int) -> None:
    if not failures:
        return
    console.print("failures:", style="red")
    for failure in failures:
        named = failure.message.startswith(failure.filename)
        words = failure.message if named else f"{failure.filename}: {failure.message}"
        console.print(plain(f"  {failure.code}: {words}"))
    if total > len(failures):
        console.print(f"  and {total - len(failures):,} more: `--all` shows them", markup=False)
    console.print("what to do:")
    for code, what in advice(failure.code for failure in failures):
        console.print(plain(f"  {code}: {what.customer}\n    operator: {what.operator}"))


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
