"""`fltr-pipeline credits`: grants, balances, statements.

Belongs here: options and tables. Does not: what a hold or a pot is (`credits.ledger`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from fltr_pipeline.cli.access import payer_by_email
from fltr_pipeline.cli.output import AsJson, counted, out, plain, print_json, print_table, read_settings
from fltr_pipeline.credits.holds import Payer, Pot
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.credits.statement import Entry, Statement
from fltr_pipeline.models import Op
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.database import engine_for, transaction
from fltr_pipeline.stores.fltr import datasets

app = typer.Typer(no_args_is_help=True, help="Grant credits, show balances and statements.")

LINES_SHOWN = 20

Email = Annotated[str, typer.Argument(metavar="EMAIL", help="The user's e-mail address.")]


@app.command()
def grant(
    email: Email,
    amount: Annotated[int, typer.Argument(min=1, help="Credits to add to the pot that pays for this user.")],
    reason: Annotated[str, typer.Option(help="Kept in the ledger.")] = "granted by an operator",
    as_json: AsJson = False,
) -> None:
    """Add credits to the pot that pays for a user: their team's if they have one, else their own."""
    ledger, payer = _open(read_settings(), email)
    available = ledger.grant(payer, amount, reason=reason)
    if as_json:
        print_json({"email": email, **asdict(payer), "granted": amount, "available": available})
    else:
        out().print(f"{counted(amount, 'credit')} granted to {_pot(payer.pot)}; {available:,} available", markup=False)


@app.command()
def balance(email: Email, as_json: AsJson = False) -> None:
    """Show what the pot that pays for a user has available, and apart from it what is held for work under way."""
    ledger, payer = _open(read_settings(), email)
    statement = ledger.statement(payer)
    if as_json:
        print_json({"email": email, **asdict(payer), "available": statement.available, "held": statement.held})
    else:
        out().print(_available(statement), markup=False)


@app.command("statement")
def show_statement(
    email: Email,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"Only the latest lines; {LINES_SHOWN} by default, with --json all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a user's credits: totals, and a line per hold or grant."""
    settings = read_settings()
    ledger, payer = _open(settings, email)
    statement = ledger.statement(payer)
    shown = statement.entries[-(limit or (len(statement.entries) if as_json else LINES_SHOWN)) :]
    names = _names(settings, shown)
    if as_json:
        print_json(_as_data(statement, shown, names))
    else:
        _print(statement, shown, names)


def _open(settings: Settings, email: str) -> tuple[Ledger, Payer]:
    ledger = Ledger(engine_for(settings.endpoints.auth_database_url))
    return ledger, payer_by_email(settings, ledger, email)


def _pot(pot: Pot) -> str:
    return f"{pot.kind} {pot.id}"


def _available(statement: Statement) -> str:
    pot = _pot(statement.pot)
    return (
        f"{counted(statement.available, 'credit')} available to {pot}, and {statement.held:,} held for work under way"
    )


def _names(settings: Settings, entries: Sequence[Entry]) -> Mapping[str, str]:
    """Dataset and file names of the pipeline's own lines; what other applications' lines refer to is theirs."""
    setups = {e.resource_id for e in entries if e.operation == Op.DATASET_SETUP}
    documents = {e.resource_id for e in entries if e.operation in set(Op) - {Op.DATASET_SETUP}}
    if not setups | documents:
        return {}
    with transaction(engine_for(settings.endpoints.database_url)) as tx:
        return datasets.names_of(tx, dataset_ids=sorted(setups), document_ids=sorted(documents))


def _state(entry: Entry) -> str:
    if entry.granted:
        return "granted"
    if entry.held:
        return "held"
    return "charged" if entry.charged else "returned"


def _as_data(statement: Statement, shown: Sequence[Entry], names: Mapping[str, str]) -> dict[str, object]:
    lines = [
        {**asdict(e), "at": f"{e.at.isoformat()}Z", "state": _state(e), "resource": names.get(e.resource_id)}
        for e in shown
    ]
    totals = {name: value for name, value in asdict(statement).items() if name != "entries"}
    return {**totals, "entries_total": len(statement.entries), "entries": lines}


def _print(statement: Statement, shown: Sequence[Entry], names: Mapping[str, str]) -> None:
    table = Table("UTC", "operation", "resource", box=None, pad_edge=False)
    numbers = ("reserved", "charged", "returned", "held", "granted")
    for name in numbers:
        table.add_column(name, justify="right")
    for entry in shown:
        resource = plain(names.get(entry.resource_id, entry.resource_id or ""))
        amounts = (f"{getattr(entry, name):,}" for name in numbers)
        table.add_row(f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.operation, resource, *amounts)
    table.add_section()
    table.add_row("", "total", "", *(f"{getattr(statement, name):,}" for name in numbers), style="bold")
    print_table(table)
    console = out()
    if len(shown) < len(statement.entries):
        console.print(f"{len(statement.entries) - len(shown):,} earlier lines: `--limit` shows more", markup=False)
    console.print(_available(statement), markup=False)
