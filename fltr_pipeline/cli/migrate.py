"""`fltr-pipeline db migrate-auth`: plan, apply or roll back the specification's migration of `fltr_auth`.

Belongs here: options, whose URL is used, what is shown. Does not: the migration (`stores.schema.migration`).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fltr_pipeline.cli.access import EMBEDDED_ADMINISTRATOR
from fltr_pipeline.cli.output import AsJson, counted, err, out, plain, print_json, print_table, read_settings
from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.schema import migration
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.migration import Outcome, Plan, State
from fltr_pipeline.stores.schema.migration.balances import Balances, Orphan

ADMINISTRATOR_VARIABLE = "FLTR_AUTH_ADMIN_URL"
ROWS_SHOWN = 20


def migrate_auth(
    plan: Annotated[
        bool, typer.Option("--plan", help="Report the state and what apply would do; change nothing.")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Migrate, after a dump: all of it or nothing.")] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Give users its columns back, with the current balances, after a dump.")
    ] = False,
    null_orphan_teams: Annotated[
        bool, typer.Option("--null-orphan-teams", help="Let users whose team does not exist have none; lists them.")
    ] = False,
    admin_url_from: Annotated[
        str,
        typer.Option(metavar="VARIABLE", help="Environment variable with the URL of fltr_auth as the owner of users."),
    ] = ADMINISTRATOR_VARIABLE,
    dumps: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the dump goes; by default dumps in FLTR_HOME.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Move credits, total_credits_purchased and team_id of fltr_auth from users to user_credits."""
    if plan + apply + rollback != 1:
        raise typer.BadParameter("give one of --plan, --apply and --rollback")
    if null_orphan_teams and rollback:
        raise typer.BadParameter("--null-orphan-teams is for --plan and --apply")
    settings = read_settings()
    url = _administrator(settings, admin_url_from)
    folder = dumps or settings.home / "dumps"
    if plan:
        _tell_plan(migration.plan(url), null_orphan_teams=null_orphan_teams, as_json=as_json)
    elif apply:
        done = migration.apply(url, folder, null_orphan_teams=null_orphan_teams, tell=_tell_progress)
        _tell(done, as_json=as_json)
    else:
        _tell(migration.rollback(url, folder, tell=_tell_progress), as_json=as_json)


def _administrator(settings: Settings, variable: str) -> str:
    """From the environment alone: a command line is everybody's to read. The embedded server trusts its own socket."""
    if url := os.environ.get(variable):
        return url
    if settings.production:
        raise ConfigurationError(
            f"{variable} is not set: put the URL of fltr_auth as the owner of users (or an administrator) there; "
            "the role of FLTR_AUTH_DATABASE_URL may not migrate"
        )
    return as_role(settings.endpoints.auth_database_url.get_secret_value(), EMBEDDED_ADMINISTRATOR)


# --- the plan ---------------------------------------------------------------------------------------------------------


def _tell_plan(plan: Plan, *, null_orphan_teams: bool, as_json: bool) -> None:
    refusals = plan.refusals(null_orphan_teams=null_orphan_teams)
    if as_json:
        print_json(_plan_as_json(plan, refusals))
    else:
        _show_plan(plan, refusals)
    if refusals:
        raise typer.Exit(1)


def _plan_as_json(plan: Plan, refusals: Sequence[str]) -> dict[str, object]:
    journals = [
        {"schema": journal.schema, "rows": None if journal.rows is None else [list(row) for row in journal.rows]}
        for journal in plan.layout.journals
    ]
    return {
        "database": plan.place,
        "state": plan.state,
        "refusals": list(refusals),
        "steps": [{"words": step.words, "statement": step.statement} for step in plan.shape.steps],
        "balances": asdict(plan.balances) if plan.balances else None,
        "dependents": [asdict(dependent) for dependent in plan.layout.uses.dependents],
        "findings": [asdict(finding) for finding in plan.layout.uses.findings],
        "journals": journals,
        "sessions": [asdict(session) for session in plan.sessions],
        "notices": list(plan.shape.notices),
    }


def _show_plan(plan: Plan, refusals: Sequence[str]) -> None:
    console = out()
    console.print(plain(f"{plan.place}\nstate: {plan.state}"))
    if plan.balances:
        _show_rows(plan.balances, plan.state)
    for line in (*_journals(plan), *plan.shape.notices):
        console.print(plain(line))
    for session in plan.sessions:
        console.print(plain(f"in the way now: {session}"))
    for number, step in enumerate(plan.shape.steps, 1):
        console.print(plain(f"{number}. {step.words}"))
    for refusal in refusals:
        console.print(plain(f"✗ {refusal}"), style="red")
    if plan.state is State.DONE:
        console.print("nothing to do")


def _show_rows(found: Balances, state: State) -> None:
    table = Table("", "rows", "credits", "purchased")
    for name, totals in (("users", found.users), ("user_credits", found.accounts)):
        if totals:
            numbers = (totals.credits, totals.purchased)
            table.add_row(name, f"{totals.rows:,}", *("-" if n is None else f"{n:,}" for n in numbers))
    print_table(table)
    lines = [
        f"NULL: {found.null_credits:,} credits, {found.null_purchased:,} purchased; they become 0",
        f"below 0: {counted(found.negative, 'user')}; copied as they are",
        f"beyond int4: {counted(len(found.overflows), 'user')}",
        f"in teams that don't exist: {counted(len(found.orphans), 'user')}",
    ]
    if found.accounts:
        lines.append(f"in both tables, and different: {counted(len(found.differing), 'row')}")
        lines.append(f"without a row in user_credits: {counted(len(found.without_account), 'user')}")
    for line in lines if state is not State.DONE else lines[-1:]:
        out().print(plain(line))
    _show_orphans(found.orphans)


def _journals(plan: Plan) -> Iterator[str]:
    if not plan.layout.journals:
        yield "no journal of Drizzle's"
    for journal in plan.layout.journals:
        rows = "unreadable" if journal.rows is None else counted(len(journal.rows), "row")
        yield f"journal of Drizzle's in schema {journal.schema}: {rows}"


def _show_orphans(orphans: Sequence[Orphan]) -> None:
    for orphan in orphans[:ROWS_SHOWN]:
        out().print(plain(f"  {orphan.user_id}: team {orphan.team_id!r}"))
    if len(orphans) > ROWS_SHOWN:
        out().print(f"  and {len(orphans) - ROWS_SHOWN:,} more: --json has all")


# --- what was done ----------------------------------------------------------------------------------------------------


def _tell_progress(line: str) -> None:
    """At once, so that the dump's path is known whatever becomes of the run."""
    err().print(plain(line))


def _tell(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(outcome), "dump": str(outcome.dump) if outcome.dump else None})
        return
    console = out()
    console.print(plain(outcome.place))
    for step in outcome.done:
        console.print(plain(f"✓ {step}"))
    if outcome.totals:
        credits, purchased = outcome.totals.credits or 0, outcome.totals.purchased or 0
        console.print(f"{counted(outcome.totals.rows, 'user')}: {credits:,} credits, {purchased:,} purchased")
    if outcome.nulled:
        console.print(f"in no team now, for theirs did not exist: {counted(len(outcome.nulled), 'user')}")
        _show_orphans(outcome.nulled)
    console.print(f"state: {outcome.state}" + ("" if outcome.done else ", nothing to do"))
