"""`fltr-pipeline credits audit`: what is wrong with the ledger, what it adds up to, which indexes would help.

Belongs here: options, tables, the exit code. Does not: the verdict (`credits.audit`).
"""

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Table

from fltr_pipeline.cli.output import AsJson, counted, out, plain, print_json, print_table, read_settings
from fltr_pipeline.credits.audit import Audit
from fltr_pipeline.credits.invariants import Severity
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.pipeline.audit import OVERDUE, audit_ledger
from fltr_pipeline.stores.database import engine_for
from fltr_pipeline.stores.schema import indexes
from fltr_pipeline.stores.schema.indexes import HelpfulIndex

_MARKS = {Severity.ERROR: "[red]✗[/]", Severity.WARNING: "[yellow]~[/]"}


def audit(
    overdue: Annotated[
        int, typer.Option(min=0, max=1_000_000, metavar="MINUTES", help="A hold that is open for longer is an error.")
    ] = int(OVERDUE.total_seconds() // 60),
    as_json: AsJson = False,
) -> None:
    """Prove the ledger: each balance against its rows, each hold against its close, in one snapshot.

    Exit code 1 if there is an error; what another program or a deletion explains is a warning.
    """
    endpoints = read_settings().endpoints
    ledger = Ledger.at(endpoints.auth_database_url)
    result = audit_ledger(engine_for(endpoints.database_url), ledger, overdue=timedelta(minutes=overdue))
    lacking = indexes.missing(endpoints.auth_database_url.get_secret_value())
    if as_json:
        helpful = [{**asdict(index), "drizzle": index.drizzle} for index in lacking]
        print_json({"balanced": result.balanced, **asdict(result), "missing_indexes": helpful})
    else:
        _show(result)
        _show_indexes(lacking)
    if not result.balanced:
        raise typer.Exit(1)


def _show(result: Audit) -> None:
    if result.findings:
        table = Table("", "pot", "subject", "row", "what is wrong", "what to do", box=None, pad_edge=False)
        for found in result.findings:
            words = (found.pot, found.subject, found.row_id, found.problem, found.remedy)
            table.add_row(_MARKS[found.severity], *map(plain, words))
        print_table(table)
    figures = Table("credits", "", box=None, pad_edge=False)
    figures.columns[1].justify = "right"
    for name, credits in asdict(result.totals).items():
        figures.add_row(name, f"{credits:,}")
    print_table(figures)
    console = out()
    console.print(
        f"{counted(result.rows, 'row')}, {counted(result.holds, 'hold')}: {result.open:,} open, "
        f"{result.overdue:,} overdue; {counted(result.pots, 'pot')} checked, {result.not_opened:,} not yet opened, "
        f"{result.gone:,} gone",
        markup=False,
    )
    verdict = "balanced" if result.balanced else "not balanced"
    left_out = result.errors + result.warnings - len(result.findings)
    more = f"; {left_out:,} more than are listed: mend these, and ask again" if left_out else ""
    console.print(
        f"{verdict}: {counted(result.errors, 'error')}, {counted(result.warnings, 'warning')}{more}", markup=False
    )


def _show_indexes(lacking: tuple[HelpfulIndex, ...]) -> None:
    if not lacking:
        return
    console = out()
    console.print("\nIndexes that fltr_auth lacks and that would help; lines for the tables' Drizzle schemas:")
    for index in lacking:
        console.print(f"  {index.table}: {index.drizzle}  // {index.serves}", markup=False)
