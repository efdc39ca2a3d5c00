"""Parses documents in processes of our own, so that no file can hang, crash or bloat the run.

Belongs here: handing out documents, limits, replacing processes, typed failures. Does not: what happens inside one
(`worker`); where the bytes come from.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from types import TracebackType
from typing import Self

from fltr_pipeline.errors import ConfigurationError, DocumentError, MemoryLimit, ParserCrash, TooLarge
from fltr_pipeline.models import ParsedDocument
from fltr_pipeline.text.parse.process import Limits, ParserProcess

Data = Callable[[], bytes] | bytes
Item = tuple[str, str, Data]
"""Document id, file name, and the bytes or what fetches them (called in a thread of the pool)."""

_DOCUMENTS_PER_PROCESS = 200
"""Then the process is replaced: parsers leak, and a leak would count against later documents' memory."""


class ParserPool:
    """A context manager; its processes start with the first documents and are gone when it ends."""

    def __init__(
        self,
        workers: int,
        seconds: float,
        memory_mb: int,
        max_bytes: int,
        pdf_engine: str = "pypdfium2",
        ocr_pages: int = 0,
    ) -> None:
        """`workers` processes, each with `memory_mb` MiB of address space and `seconds` (wall clock) per document.

        Files above `max_bytes` are not sent at all, and no text is accepted that is far larger than that. OCR reads at
        most `ocr_pages` pages of a document, each of which has `seconds` of its own.
        """
        self._workers = workers
        self._max_bytes = max_bytes
        self._limits = Limits(seconds, memory_mb, 2 * max_bytes + (1 << 20), pdf_engine, ocr_pages)
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._alive: set[ParserProcess] = set()
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="parse")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            executor, self._executor = self._executor, None
            alive, self._alive = self._alive, set()
        for process in alive:
            process.kill()
        if executor:
            executor.shutdown(wait=True, cancel_futures=True)
        for process in alive:
            process.close()

    def parse_all(
        self, items: Iterable[Item], on_page: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[str, ParsedDocument | DocumentError]]:
        """Each document's id with its text or its permanent failure, as they finish.

        `on_page` is called, in a thread of the pool, as OCR begins with each page. At most two documents per process
        are in flight; `items` is read no further ahead than that. What a callable raises other than a `DocumentError`
        (the blob store is down) is raised here.
        """
        executor = self._executor
        if executor is None:
            raise RuntimeError("the parser pool is not open: use it in a `with` block")
        waiting = iter(items)
        pending: dict[Future[ParsedDocument | DocumentError], str] = {}

        def submit(count: int) -> None:
            for document_id, filename, data in islice(waiting, count):
                pending[executor.submit(self._outcome, filename, data, on_page)] = document_id

        submit(2 * self._workers)
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            submit(len(done))
            for future in done:
                yield pending.pop(future), future.result()

    def _outcome(self, filename: str, data: Data, on_page: Callable[[], None]) -> ParsedDocument | DocumentError:
        try:
            content = data() if callable(data) else data
            if len(content) > self._max_bytes:
                raise TooLarge(
                    f"{filename}: has {len(content):,} bytes, the limit is {self._max_bytes:,}; split the file"
                )
            return self._parsed(filename, content, on_page)
        except DocumentError as error:
            return error

    def _parsed(self, filename: str, content: bytes, on_page: Callable[[], None]) -> ParsedDocument:
        """A process that fails after earlier documents may be damaged by them: this one then gets a new process."""
        while True:
            process = self._process()
            used = process.served > 0
            try:
                return process.parse(filename, content, on_page)
            except (MemoryLimit, ParserCrash):
                process.usable = False
                if not used:
                    raise
            finally:
                if not process.usable or process.served >= _DOCUMENTS_PER_PROCESS:
                    self._drop(process)

    def _process(self) -> ParserProcess:
        """This thread's own process."""
        process: ParserProcess | None = getattr(self._mine, "process", None)
        if process is None:
            with self._lock:
                if self._executor is None:
                    raise RuntimeError("the parser pool was closed")
                process = ParserProcess(self._limits)
                self._alive.add(process)
            try:
                process.wait_until_ready()
            except ConfigurationError:
                self._drop(process)
                raise
            self._mine.process = process
        return process

    def _drop(self, process: ParserProcess) -> None:
        self._mine.process = None
        with self._lock:
            self._alive.discard(process)
        process.close()
