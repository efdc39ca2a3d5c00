"""`fltr-pipeline credits`: grants, balances, statements; the audit has a module of its own.

Belongs here: options and tables. Does not: what a hold or a pot is (`credits.ledger`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from fltr_pipeline.cli.access import payer_by_email
from fltr_pipeline.cli.audit import audit
from fltr_pipeline.cli.output import AsJson, counted, out, plain, print_json, print_table, read_settings
from fltr_pipeline.credits.balance import Balance, KeyBalance, balances_of
from fltr_pipeline.credits.holds import Payer, Pot
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.credits.statement import By, Entry, Group, Statement, grouped
from fltr_pipeline.models import Op
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.database import engine_for, transaction
from fltr_pipeline.stores.fltr import datasets

app = typer.Typer(no_args_is_help=True, help="Grant credits, show balances and statements, audit the ledger.")
app.command()(audit)

LINES_SHOWN = 20
NUMBERS = ("reserved", "charged", "returned", "held", "granted")

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
    """Show what a user can spend, and apart from it what is held for work under way: by all who share the pot.

    Below, the pools of their API keys, by the beginning of each key's SHA-256, with what its limits leave.
    """
    ledger, payer = _open(read_settings(), email)
    balances = balances_of(ledger.engine, payer)
    if as_json:
        keys = [asdict(key) for key in balances.keys]
        print_json({"email": email, **asdict(payer), **asdict(balances.pays), "api_keys": keys})
    else:
        out().print(_available(balances.pays), markup=False)
        for key in balances.keys:
            out().print(_key(key), markup=False)


@app.command("statement")
def show_statement(
    email: Email,
    by: Annotated[By, typer.Option(help="What to have a line for.")] = By.HOLD,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"Only the latest lines; {LINES_SHOWN} by default, with --json all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a user's credits: totals, and a line per hold or grant, or per document, op or run."""
    settings = read_settings()
    ledger, payer = _open(settings, email)
    statement = ledger.statement(payer)
    lines = statement.entries if by is By.HOLD else grouped(statement.entries, by)
    shown = lines[-(limit or (len(lines) if as_json else LINES_SHOWN)) :]
    names = _names(settings, statement.entries, {_subject(line) for line in shown})
    if as_json:
        print_json(_as_data(statement, by, shown, len(lines), names))
    else:
        _print(statement, by, shown, len(lines), names)


def _open(settings: Settings, email: str) -> tuple[Ledger, Payer]:
    ledger = Ledger.at(settings.endpoints.auth_database_url)
    return ledger, payer_by_email(settings, ledger, email)


def _pot(pot: Pot) -> str:
    return f"{pot.kind} {pot.id}"


def _available(balance: Balance) -> str:
    available, pot = counted(balance.available, "credit"), _pot(balance.pot)
    return f"{available} available to {pot}, and {balance.held:,} held for work under way"


def _key(key: KeyBalance) -> str:
    said = f"API key {key.digest[:12]}…: {key.available:,} available, and {key.held:,} held"
    limits = (("today", key.daily_limit, key.daily_left), ("this month", key.monthly_limit, key.monthly_left))
    left = [f"{left:,} of {limit:,} left {when}" for when, limit, left in limits if limit is not None]
    return f"{said}; {', '.join(left) or 'no limit'}"


Line = Entry | Group


def _subject(line: Line) -> str | None:
    """What a line is about: a document or dataset; an op or a run where it is grouped by those."""
    return line.resource_id if isinstance(line, Entry) else line.key


def _names(settings: Settings, entries: Iterable[Entry], wanted: set[str | None]) -> Mapping[str, str]:
    """Dataset and file names of the pipeline's own lines; what other applications' lines refer to is theirs."""
    ours = [e for e in entries if e.resource_id and e.resource_id in wanted and e.operation in set(Op)]
    setups = {e.resource_id for e in ours if e.operation == Op.DATASET_SETUP}
    documents = {e.resource_id for e in ours} - setups
    if not ours:
        return {}
    with transaction(engine_for(settings.endpoints.database_url)) as tx:
        return datasets.names_of(tx, dataset_ids=sorted(setups), document_ids=sorted(documents))


def _state(entry: Entry) -> str:
    if entry.granted:
        return "granted"
    if entry.held:
        return "held"
    return "charged" if entry.charged else "returned"


def _line_data(line: Line, by: By, names: Mapping[str, str]) -> dict[str, object]:
    subject = _subject(line)
    name = {} if by in {By.OP, By.RUN} else {"resource": None if subject is None else names.get(subject)}
    if isinstance(line, Entry):
        return {**asdict(line), "at": _utc(line.at), "state": _state(line), **name}
    return {**asdict(line), "first": _utc(line.first), "last": _utc(line.last), **name}


def _utc(at: datetime) -> str:
    """With its zone, whether or not the owner's column has one."""
    return f"{at.replace(tzinfo=None).isoformat()}Z"


def _as_data(
    statement: Statement, by: By, shown: Sequence[Line], total: int, names: Mapping[str, str]
) -> dict[str, object]:
    totals = {name: value for name, value in asdict(statement).items() if name != "entries"}
    lines = [_line_data(line, by, names) for line in shown]
    return {**totals, "by": by.value, "entries_total": total, "entries": lines}


def _print(statement: Statement, by: By, shown: Sequence[Line], total: int, names: Mapping[str, str]) -> None:
    heads = ("UTC", "operation", "resource") if by is By.HOLD else ("last, UTC", by.value, "lines")
    table = Table(*heads, box=None, pad_edge=False)
    for name in NUMBERS:
        table.add_column(name, justify="right")
    for line in shown:
        subject = _subject(line) or ""
        resource = plain(names.get(subject, subject or ("" if by is By.HOLD else "others")))
        if isinstance(line, Entry):
            cells = (f"{line.at:%Y-%m-%d %H:%M:%S}", plain(line.operation), resource)
        else:
            cells = (f"{line.last:%Y-%m-%d %H:%M:%S}", resource, plain(f"{line.lines:,}"))
        table.add_row(*cells, *(f"{getattr(line, name):,}" for name in NUMBERS))
    table.add_section()
    table.add_row("", "total", "", *(f"{getattr(statement, name):,}" for name in NUMBERS), style="bold")
    print_table(table)
    console = out()
    if len(shown) < total:
        console.print(f"{total - len(shown):,} earlier lines: `--limit` shows more", markup=False)
    console.print(
        f"{counted(statement.available, 'credit')} available to {_pot(statement.pot)}, "
        f"and {statement.held:,} held for work under way of {statement.email}",
        markup=False,
    )
