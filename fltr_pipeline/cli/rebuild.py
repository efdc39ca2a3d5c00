"""`fltr-pipeline db rebuild`: show what a rebuild of `fltr` takes away, or do it.

Belongs here: options, the question for the name, asking Dagster for its runs, what is shown. Does not: the rebuild
(`pipeline.rebuild`).
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from fltr_pipeline.cli.output import AsJson, counted, err, out, plain, print_json, print_table, read_settings
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.pipeline import rebuild as use_case
from fltr_pipeline.pipeline.rebuild import Plan
from fltr_pipeline.pipeline.services import open_services
from fltr_pipeline.stores.database import parsed


def rebuild(
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be lost; change nothing.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Dump fltr, drop it and create it anew.")] = False,
    confirm: Annotated[
        str | None, typer.Option(metavar="NAME", help="The database's name, in place of typing it when asked.")
    ] = None,
    dumps: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the dump goes; by default dumps in FLTR_HOME.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Drop all of fltr and create it as specified. Everything in it is lost but for the dump; fltr_auth stays."""
    if plan == apply:
        raise typer.BadParameter("give one of --plan and --apply")
    settings = read_settings()
    services = open_services(settings)

    def runs() -> Sequence[str]:
        return _unfinished_runs(settings.endpoints.dagster_database_url.get_secret_value())

    if plan:
        _tell_plan(use_case.plan(services, runs), as_json=as_json)
        return
    if confirm is None:
        if as_json or not sys.stdin.isatty():
            raise typer.BadParameter("--apply needs --confirm NAME where nobody can be asked for the database's name")
        _show_plan(use_case.plan(services, runs))
        confirm = str(typer.prompt("All of this will be dropped. Type the database's name"))
    done = use_case.apply(services, dumps or settings.home / "dumps", runs, confirmed=confirm, tell=_tell_step)
    if as_json:
        print_json({**asdict(done), "dump": str(done.dump)})
    else:
        out().print(plain(f"{done.database} was rebuilt; what it held is in {done.dump}"))


def _unfinished_runs(dagster_url: str) -> list[str]:
    """Runs that are queued or at work. Of Dagster's instance only its storage is needed, so no folder of its own.

    Raises:
        StoreUnavailable: it can't be asked.
        ConfigurationError: its URL can't be read.
    """
    parsed(dagster_url)  # Dagster logs each failure to connect, with what it takes for the host
    from dagster import DagsterError, DagsterInstance, RunsFilter  # noqa: PLC0415 - takes seconds
    from dagster._core.instance.ref import InstanceRef  # noqa: PLC0415
    from dagster_postgres.utils import DagsterPostgresException  # noqa: PLC0415

    from fltr_pipeline.defs.reconcile import UNFINISHED  # noqa: PLC0415

    storage: Any = {"storage": {"postgres": {"postgres_url": dagster_url}}}
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            DagsterInstance.from_ref(InstanceRef.from_dir(folder, overrides=storage)) as instance,
        ):
            return [run.run_id for run in instance.get_runs(RunsFilter(statuses=UNFINISHED))]
    except (SQLAlchemyError, DagsterError, DagsterPostgresException) as error:  # its words may quote the URL
        raise StoreUnavailable(
            f"Dagster's database can't be asked for its runs ({type(error).__name__}): see FLTR_DAGSTER_DATABASE_URL"
        ) from None


def _tell_step(words: str) -> None:
    """On stderr and at once: who is cut off later must know where the dump is."""
    err().print(plain(words))


def _tell_plan(found: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
    else:
        _show_plan(found)
    if found.refusals:
        raise typer.Exit(1)


def _show_plan(found: Plan) -> None:
    table = Table("table", "rows", "", title=f"{found.survey.database}: would be lost", title_justify="left")
    for held in found.survey.tables:
        rows = "not readable" if held.rows is None else f"{held.rows:,}"
        table.add_row(f"{held.schema}.{held.name}", rows, "" if held.specified else "not in the specification")
    print_table(table)
    lines = [f"also: {name}" for name in found.survey.others]
    lines += [
        f"{counted(found.vectors, 'vector')} in Milvus",
        f"{counted(found.holds, 'open hold')} in fltr_auth, of {counted(found.credits_held, 'credit')}: given back",
        *(f"to be granted again: {statement}" for statement in found.survey.rights),
    ]
    for line in lines:
        out().print(plain(line))
    for refusal in found.refusals:
        out().print(plain(f"✗ {refusal}"), style="red")
