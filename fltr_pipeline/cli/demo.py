"""`fltr-pipeline demo`: the main job from nothing, and what came of it.

Belongs here: options, progress, what is printed. Does not: the job (embedded.demo).
"""

from collections.abc import Sequence
from dataclasses import asdict

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from fltr_pipeline.cli.output import AsJson, Progress, err, out, plain, print_json, read_settings
from fltr_pipeline.cli.search import quiet_model
from fltr_pipeline.cli.stack import interruptible
from fltr_pipeline.embedded import demo as job
from fltr_pipeline.embedded.demo import Outcome, Scene
from fltr_pipeline.embedded.postgres import SUPERUSER
from fltr_pipeline.embedded.stack import Stack
from fltr_pipeline.embedded.state import StackState
from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.pipeline.search import Hit
from fltr_pipeline.pipeline.services import Services, open_services
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.fltr.datasets import DatasetStatus
from fltr_pipeline.stores.schema.connection import as_role

_TEXT_SHOWN = 240


def demo(as_json: AsJson = False) -> None:
    """Run the main job from nothing and check all of its results.

    Starts the embedded stack unless it runs already (and stops it afterwards if so), uploads the sample documents for a
    new user, lets the sensor and the daemon do the work, then prints documents, searches and credits. Exit code 0 means
    that every check passed.
    """
    settings = read_settings()
    if settings.production:
        raise ConfigurationError(
            "the FLTR_*_URL variables name servers of your own; the demo writes only to the embedded stack: "
            "unset them to run it"
        )
    stack = Stack(settings.home)
    already_up = stack.state() is not None and not stack.broken()
    with interruptible():
        try:
            with Progress(err()) as progress:
                state = stack.up(None, progress)
            outcome = _run(state)
            if as_json:
                print_json(_as_data(outcome, state))
            else:
                _print(outcome, state, already_up=already_up)
        finally:
            if not already_up:
                with Progress(err()) as progress:
                    stack.down(progress)
    if not outcome.passed:
        raise typer.Exit(1)


def _run(state: StackState) -> Outcome:
    settings = Settings(home=state.home)
    services = open_services(settings)
    scene = job.set_scene(services, as_role(settings.endpoints.auth_database_url.get_secret_value(), SUPERUSER))
    quiet_model()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=err()) as bars:
        uploading = bars.add_task("uploading", total=scene.files)
        for _ in job.upload_samples(services, scene):
            bars.advance(uploading)
        _wait(services, scene, state, bars)
    return job.examine(services, scene, state)


def _wait(services: Services, scene: Scene, state: StackState, bars: Bars) -> None:
    waiting = bars.add_task("waiting for the sensor", total=scene.files)

    def show(status: DatasetStatus, runs: Sequence[str]) -> None:
        ended = sum(status.documents.get(name, 0) for name in ("ready", "failed"))
        described = f"processing ({', '.join(sorted({r.lower() for r in runs}))})" if runs else "waiting for the sensor"
        bars.update(waiting, completed=ended, description=described)
        if not bars.console.is_terminal:
            bars.console.print(f"{described}: {ended} of {scene.files} documents", markup=False)

    job.wait(services, scene, state, show)


def _print(outcome: Outcome, state: StackState, *, already_up: bool) -> None:
    console, status, s = out(), outcome.status, outcome.statement
    counts = ", ".join(f"{n} {name}" for name, n in status.documents.items())
    console.print(f"\n[bold]Documents[/] of {outcome.scene.dataset.name!r}: {counts}")
    for failure in status.failures:
        console.print(plain(f"  {failure.code}: {failure.message}"))
    console.print(
        f"  {status.pages} pages, {status.chunks} chunks, {status.tokens} tokens in {status.seconds or 0:.1f} s"
    )
    for query, hits in outcome.searches:
        console.print(f"\n[bold]Search[/] {query.text}")
        for hit in hits[:2]:
            _print_hit(console, hit)
    console.print(f"\n[bold]Credits[/] of {outcome.scene.email}")
    credits_table = Table("before", "reserved", "charged", "returned", "held", "after", box=None)
    credits_table.add_row(*(str(n) for n in (outcome.before, s.reserved, s.charged, s.returned, s.held, s.available)))
    console.print(credits_table)
    console.print("\n[bold]Checks[/]")
    for check in outcome.checks:
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
        console.print(mark, plain(f"{check.name}: {check.detail}"))
    after = "" if already_up else " (now stopping; `fltr-pipeline up` opens it again with these runs)"
    console.print(f"\nDagster UI: [bold]{state.ui}[/]{after}")


def _print_hit(console: Console, hit: Hit) -> None:
    place = hit.place
    text = " ".join(place.text.split())
    shown = text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}…"
    console.print(
        plain(f"  {hit.score:.3f}  {place.filename}, page {place.page}, characters {place.start}-{place.end}")
    )
    console.print(plain(f"         {shown}"))


def _as_data(outcome: Outcome, state: StackState) -> dict[str, object]:
    return {
        "dataset": asdict(outcome.scene.dataset),
        "email": outcome.scene.email,
        "documents": dict(outcome.status.documents),
        "failures": [asdict(f) for f in outcome.status.failures],
        "pages": outcome.status.pages,
        "chunks": outcome.status.chunks,
        "tokens": outcome.status.tokens,
        "seconds": outcome.status.seconds,
        "runs": list(outcome.runs),
        "searches": [
            {"query": q.text, "hits": [{"score": h.score, **asdict(h.place)} for h in hits]}
            for q, hits in outcome.searches
        ],
        "credits": {"before": outcome.before, "after": outcome.statement.available}
        | {name: getattr(outcome.statement, name) for name in ("reserved", "charged", "returned", "held")},
        "checks": [asdict(check) for check in outcome.checks],
        "ui": state.ui,
        "passed": outcome.passed,
    }
