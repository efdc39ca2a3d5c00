"""`fltr-pipeline search`: hits with their place.

Belongs here: how a hit looks. Does not: which chunks answer a query (`pipeline.search`).
"""

import os
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel

from fltr_pipeline.cli.output import AsJson, out, plain, print_json, read_settings
from fltr_pipeline.pipeline import search as finder
from fltr_pipeline.pipeline.services import open_services
from fltr_pipeline.pipeline.uploads import find_dataset

MAX_HITS = 1000


def search(
    dataset: Annotated[str, typer.Argument(help="Name or id.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, max=MAX_HITS, help="Most hits.")] = 5,
    mode: Annotated[finder.Mode, typer.Option(help="By meaning, by words, or by both.")] = "dense",
    as_json: AsJson = False,
) -> None:
    """Search a dataset: the best passages with their filename, page and offsets in characters."""
    if not query.strip():
        raise typer.BadParameter("there is nothing to look for", param_hint="QUERY")
    services = open_services(read_settings())
    found = find_dataset(services, dataset)
    quiet_model()
    hits = finder.search(services, found.id, query, k=k, mode=mode)
    if as_json:
        data = [{"score": hit.score, **asdict(hit.place)} for hit in hits]
        print_json({"dataset": asdict(found), "query": query, "mode": mode, "hits": data})
        return
    console = out()
    for rank, hit in enumerate(hits, start=1):
        _print_hit(console, rank, hit)
    if not hits:
        words = f"nothing found in {found.name!r}; `fltr-pipeline status {found.id}` shows what is searchable"
        console.print(words, markup=False)


def _print_hit(console: Console, rank: int, hit: finder.Hit) -> None:
    place = hit.place
    title = f"{rank}. {place.filename}, page {place.page}, characters {place.start:,} to {place.end:,}"
    panel = Panel(
        plain(place.text), title=plain(title), title_align="left", subtitle=f"{hit.score:.3f}", subtitle_align="right"
    )
    console.print(panel, soft_wrap=False)


def quiet_model() -> None:
    """Keep what the model's libraries tell while they load off the terminal; they look when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
