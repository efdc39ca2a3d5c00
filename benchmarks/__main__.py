"""`python -m benchmarks`: start-up and ingest on a fresh embedded stack, changes and the ledger, measured; Markdown.

Belongs here: timing. Does not: the parts on changes (incremental) and the ledger (ledger), assertions; a slow machine
is not a failure.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import incremental, ledger
from benchmarks.machine import machine
from benchmarks.runs import ingest, new_dataset
from fltr_pipeline.embedded.stack import Stack
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.services import Services, open_services
from fltr_pipeline.samples import QUERIES, sample_files
from fltr_pipeline.settings import Settings

VERSIONS = ("dagster", "torch", "sentence-transformers", "pymilvus", "milvus-lite", "pypdfium2")


@dataclass(frozen=True)
class Row:
    what: str
    value: str


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def start_up(stack: Stack) -> list[Row]:
    load = [sys.executable, "-c", "import fltr_pipeline.definitions"]
    loads = [timed(lambda: subprocess.run(load, check=True)) for _ in range(5)]
    return [
        Row("definitions load in a fresh interpreter (median of 5)", f"{statistics.median(loads):.2f} s"),
        Row("`up`, nothing there yet", f"{timed(stack.up):.1f} s"),
        Row("`up`, everything running", f"{timed(stack.up):.2f} s"),
    ]


def samples(services: Services) -> list[Row]:
    services.model.encode(["the model is loaded before the clock starts"])
    base = new_dataset(services, sample_files())
    done = ingest(services, base).stages
    (extracted, e), (planned, p), (embedded, m) = done["extract"], done["plan"], done["embed"]
    queries = [timed(partial(search, services, base.dataset.id, q.text, k=5)) for q in QUERIES * 5]
    return [
        Row(f"samples: extraction of {extracted.counts['pages']} pages", f"{e:.1f} s"),
        Row(f"samples: chunking into {planned.counts['chunks']} chunks", f"{p:.1f} s"),
        Row(
            f"samples: embedding and publishing {embedded.counts['tokens_embedded']:,} tokens",
            f"{m:.1f} s ({embedded.counts['tokens_embedded'] / m:,.0f} tokens/s)",
        ),
        Row("search, median", f"{1000 * statistics.median(queries):.0f} ms"),
    ]


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    title = machine((*VERSIONS, *ledger.VERSIONS))
    with tempfile.TemporaryDirectory(prefix="fltr-bench-") as folder:
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder) / "home")
        try:
            rows = start_up(stack)
            services = open_services(Settings(home=stack.home))
            rows += samples(services)
        finally:
            closing = timed(stack.down)
        changes = incremental.tables(_made(Path(folder) / "changes"))
        rates = ledger.table(Path(folder) / "ledger")
    rows.append(Row("`down`", f"{closing:.1f} s"))
    print(f"{title}\n\n| what | measured |\n| --- | --- |")
    for row in rows:
        print(f"| {row.what} | {row.value} |")
    print(f"\n{changes}\n\n{rates}")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
