"""`fltr-pipeline upload` and `reprocess`: what puts documents into the queue.

Belongs here: options, the progress bar, what is printed. Does not: the uploader's contract (`pipeline.uploads`), which
documents a mode names (`pipeline.reprocess`).
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fltr_pipeline.cli.access import payer_by_email
from fltr_pipeline.cli.output import AsJson, counted, err, out, print_json, read_settings
from fltr_pipeline.credits.holds import Payer, key_digest
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.errors import ForeignPayer, InvalidValue
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline import reprocess as redo
from fltr_pipeline.pipeline import uploads
from fltr_pipeline.pipeline.services import Services, open_services
from fltr_pipeline.stores.fltr.datasets import Dataset


def upload(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files, or folders with all that is below.")],
    dataset: Annotated[str, typer.Option(help="Its name; it is created if the user has none of that name.")],
    user: Annotated[str, typer.Option(metavar="EMAIL", help="The dataset's owner, who pays.")],
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the API key whose pool pays instead; - is standard input."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload files or folders into a dataset. A file of a known name replaces that document."""
    if not dataset.strip():
        raise typer.BadParameter("a dataset needs a name", param_hint="--dataset")
    files = uploads.files_below(paths)
    settings = read_settings()
    services = open_services(settings)
    payer = payer_by_email(settings, services.ledger, user)
    key = _read_key(api_key_file, payer, services.ledger) if api_key_file else None
    target = uploads.dataset_of(services, payer.user_id, dataset)
    uploaded = _upload(services, target, files, key)
    replaced = sum(u.replaced for u in uploaded)
    new = len(uploaded) - replaced
    if as_json:
        print_json(
            {
                "dataset": asdict(target),
                "new": new,
                "replaced": replaced,
                "bytes": sum(u.size for u in uploaded),
                "documents": [asdict(u) for u in uploaded],
            }
        )
    else:
        number = counted(len(uploaded), "document")
        words = f"{number} uploaded into {target.name!r}: {new:,} new, {replaced:,} replaced"
        out().print(words, markup=False)


def reprocess(
    dataset: Annotated[str, typer.Argument(help="Name or id.")],
    mode: Annotated[
        ReprocessMode, typer.Option(help="What to do again; each includes the ones before it.")
    ] = ReprocessMode.stale,
    charge: Annotated[
        bool, typer.Option("--charge", help="The customer asked for it and pays; free otherwise.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Do a dataset's documents again. They are queued; the sensor launches the runs.

    pending: what waits already. failed: what failed, too. stale: also what another configuration made. all: everything.
    """
    services = open_services(read_settings())
    found = uploads.find_dataset(services, dataset)
    queued = redo.requeue(services, found.id, mode, charge=charge)
    waiting = redo.remaining(services, found.id)
    if as_json:
        print_json({"dataset": asdict(found), "mode": mode.value, "queued": queued, "waiting": waiting})
    else:
        words = f"{counted(queued, 'document')} of {found.name!r} queued; {waiting:,} in all wait for the sensor"
        out().print(words, markup=False)


def _read_key(file: Path, payer: Payer, ledger: Ledger) -> str:
    """A file, since the arguments of a command are there for all to see."""
    try:
        key = (sys.stdin.read() if str(file) == "-" else file.read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{file} can't be read: {error}") from None
    if not key:
        raise InvalidValue(f"{file} holds no API key")
    pays = ledger.payers(payer.user_id, {key_digest(key)}).get(key_digest(key))
    if pays is None:
        raise ForeignPayer(f"the API key in {file} belongs to another account than {payer.user_id}'s")
    if pays.pot.kind != "api_key":
        err().print(f"the API key in {file} has no credits of its own: {pays.pot.name} pays", markup=False)
    return key


def _upload(
    services: Services, dataset: Dataset, files: Sequence[tuple[str, Path]], api_key: str | None
) -> list[uploads.Uploaded]:
    console = err()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    uploaded: list[uploads.Uploaded] = []
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("uploading", total=len(files))
        for document in uploads.upload(services, dataset, files, api_key=api_key):
            uploaded.append(document)
            progress.update(task, advance=1)
    return uploaded
