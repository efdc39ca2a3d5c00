"""`python -m benchmarks`: measures start-up and ingest on a fresh embedded stack, and the ledger; prints Markdown.

Belongs here: timing. Does not: the ledger's part (ledger), assertions; a slow machine is not a failure.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks import ledger
from benchmarks.machine import machine
from fltr_pipeline.embedded.postgres import SUPERUSER
from fltr_pipeline.embedded.stack import Stack
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.services import Services, open_services
from fltr_pipeline.pipeline.setup import Ground, ground, set_up
from fltr_pipeline.pipeline.stage import StageRun, StageWork
from fltr_pipeline.pipeline.uploads import dataset_of, upload
from fltr_pipeline.pipeline.worker import Report, Worker
from fltr_pipeline.samples import QUERIES, sample_files
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.development import add_user
from fltr_pipeline.text.model import EmbeddingModel

SMALL_DOCUMENTS = 1000
VERSIONS = ("dagster", "torch", "sentence-transformers", "pymilvus", "milvus-lite", "pypdfium2")


@dataclass(frozen=True)
class Row:
    what: str
    value: str


class ConstantModel(EmbeddingModel):
    """The real tokenizer, a vector without work: what is left is the engine's own cost."""

    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0] + [0.0] * (self.dimension - 1)] * len(texts)


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


def new_dataset(services: Services, files: Sequence[tuple[str, Path]]) -> Ground:
    admin = as_role(services.settings.endpoints.auth_database_url.get_secret_value(), SUPERUSER)
    user_id = add_user(admin, f"{uuid.uuid4().hex}@example.org", "Bench", 100_000)
    dataset = dataset_of(services, user_id, uuid.uuid4().hex)
    for _ in upload(services, dataset, files):
        pass
    return ground(services, dataset.id)


def ingest(services: Services, base: Ground) -> dict[str, tuple[Report, float]]:
    """The work of one run, without Dagster, op by op."""
    settings = services.settings
    worker = Worker(services.fltr, uuid.uuid4().hex, settings.lease_seconds)
    billing = Billing(services.fltr, services.ledger, settings.prices, settings.charging)
    set_up(services, billing, worker, base)
    done: dict[str, tuple[Report, float]] = {}
    with Extract(services) as extract:
        works: list[StageWork] = [extract, Plan(services), Embed(services)]
        for work in works:
            run = StageRun(
                services.fltr,
                billing,
                work,
                worker,
                base.dataset,
                base.payer,
                settings.batch_size,
                settings.max_attempts,
            )
            started = time.perf_counter()
            done[work.stage.value] = run.run(1_000_000), time.perf_counter() - started
    sweep(services, base.dataset.id)
    return done


def samples(services: Services) -> list[Row]:
    services.model.encode(["the model is loaded before the clock starts"])
    base = new_dataset(services, sample_files())
    done = ingest(services, base)
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


def engine(services: Services, folder: Path) -> list[Row]:
    """Many small documents with a constant embedder: claims, credits, manifest, Milvus and nothing else."""
    settings = services.settings
    constant = ConstantModel(settings.embedding_model, batch_size=1, threads=0)
    free = replace(services, model=constant)
    for n in range(SMALL_DOCUMENTS):
        words = " ".join(f"word{(n * 7919 + i * 104729) % 9973}" for i in range(300))
        (folder / f"{n:05}.txt").write_text(words)
    files = [(path.name, path) for path in sorted(folder.iterdir())]
    base = new_dataset(free, files)
    cold = sum(seconds for _, seconds in ingest(free, base).values())
    for _ in upload(free, base.dataset, files):
        pass
    again = sum(seconds for _, seconds in ingest(free, base).values())
    return [
        Row(
            f"{SMALL_DOCUMENTS} documents of 2 kB, constant embedder, cold", f"{SMALL_DOCUMENTS / cold:.0f} documents/s"
        ),
        Row("the same uploaded again, unchanged", f"{1000 * again / SMALL_DOCUMENTS:.1f} ms per document"),
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
            small = Path(folder) / "small"
            small.mkdir()
            rows += engine(services, small)
        finally:
            closing = timed(stack.down)
        rates = ledger.table(Path(folder) / "ledger")
    rows.append(Row("`down`", f"{closing:.1f} s"))
    print(f"{title}\n\n| what | measured |\n| --- | --- |")
    for row in rows:
        print(f"| {row.what} | {row.value} |")
    print(f"\n{rates}")


if __name__ == "__main__":
    main()
