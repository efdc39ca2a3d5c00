"""`fltr-pipeline db`: create the schemas, verify them, add a person to the development copy.

Belongs here: options, tables on the terminal, exit codes. Does not: SQL or verdicts (`stores.schema`), the commands
that can destroy something (modules of their own).
"""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fltr_pipeline.cli.access import EMBEDDED_ADMINISTRATOR
from fltr_pipeline.cli.migrate import migrate_auth
from fltr_pipeline.cli.output import AsJson, out, print_json, read_settings
from fltr_pipeline.cli.rebuild import rebuild
from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.settings import Endpoints, Settings
from fltr_pipeline.stores import schema
from fltr_pipeline.stores.schema.compare import Severity
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.development import INT4_MAX
from fltr_pipeline.stores.schema.development import add_user as add_development_user
from fltr_pipeline.stores.schema.specification import FLTR, FLTR_AUTH
from fltr_pipeline.stores.schema.verify import VerificationReport, verify_auth, verify_fltr

app = typer.Typer(no_args_is_help=True, help="The schemas of both databases: create, verify, rebuild, migrate.")
app.command()(rebuild)
app.command("migrate-auth")(migrate_auth)

_MARKS = {Severity.OK: "[green]✓[/]", Severity.HARMLESS: "[yellow]~[/]", Severity.HARMFUL: "[red]✗[/]"}


class DatabaseName(StrEnum):
    """What `--database` takes."""

    FLTR = "fltr"
    FLTR_AUTH = "fltr_auth"


@app.command()
def init(
    dev_auth: Annotated[
        bool,
        typer.Option("--dev-auth", help="Also make an empty FLTR_AUTH_DATABASE_URL a development copy of fltr_auth."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create what is absent in fltr; safe to repeat. The embedded stack also gets its copy of fltr_auth."""
    settings = read_settings()
    endpoints = settings.endpoints
    fltr = endpoints.database_url.get_secret_value()
    schema.init_fltr(fltr)
    verify_fltr(fltr).require()
    made = {FLTR.name: "as specified"}
    if dev_auth or not settings.production:
        schema.init_auth_copy(_auth_administrator(settings, endpoints))
        made[FLTR_AUTH.name] = "a development copy, as specified"
    if as_json:
        print_json([{"database": name, "state": state} for name, state in made.items()])
        return
    for name, state in made.items():
        typer.echo(f"{name}: {state}")


@app.command()
def verify(
    database: Annotated[DatabaseName | None, typer.Option(help="Only this one; both by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Hold both databases against the specification. Exit code 1 on drift; harmless differences are listed only."""
    endpoints = read_settings().endpoints
    reports = []
    if database in {None, DatabaseName.FLTR}:
        reports.append(verify_fltr(endpoints.database_url.get_secret_value()))
    if database in {None, DatabaseName.FLTR_AUTH}:
        reports.append(verify_auth(endpoints.auth_database_url.get_secret_value()))
    if as_json:
        print_json([_as_json(report) for report in reports])
    else:
        for report in reports:
            _show(report)
    if any(not report.conforms for report in reports):
        raise typer.Exit(1)


@app.command("add-user")
def add_user(
    email: Annotated[str, typer.Argument(help="The user's e-mail address; one that exists is left as it is.")],
    name: Annotated[str | None, typer.Option(help="By default the address up to the @.")] = None,
    credits: Annotated[int, typer.Option(min=0, max=INT4_MAX, help="What they start with.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Add a user to the embedded stack's copy of fltr_auth. In production the web application does this."""
    local_part, at, domain = email.partition("@")
    if not (local_part and at and domain):
        raise typer.BadParameter(f"{email!r} is not an e-mail address")
    settings = read_settings()
    if settings.production:
        raise ConfigurationError(
            "users of a configured fltr_auth are the web application's: `db add-user` is for the embedded stack"
        )
    administrator = _auth_administrator(settings, settings.endpoints)
    user_id = add_development_user(administrator, email, name or local_part, credits)
    if as_json:
        print_json({"id": user_id, "email": email.lower()})
    else:
        typer.echo(user_id)


def _auth_administrator(settings: Settings, endpoints: Endpoints) -> str:
    """In production the URL as given; on the embedded server the administrator beside our own role."""
    url = endpoints.auth_database_url.get_secret_value()
    return url if settings.production else as_role(url, EMBEDDED_ADMINISTRATOR)


def _as_json(report: VerificationReport) -> dict[str, object]:
    findings = [asdict(finding) for finding in report.findings]
    return {"database": report.database, "conforms": report.conforms, "findings": findings}


def _show(report: VerificationReport) -> None:
    table = Table("", "what", "expected", "found", "how to mend", title=report.database, title_justify="left")
    for finding in report.findings:
        words = (finding.subject, finding.expected, finding.found, finding.mend)
        table.add_row(_MARKS[finding.severity], *map(escape, words))
    console = out()
    console.print(table)
    verdict = "as specified" if report.conforms else f"{len(report.harmful)} harmful differences"
    console.print(f"{report.database}: {verdict}, {len(report.harmless)} harmless differences")
