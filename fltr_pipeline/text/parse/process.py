"""One parser process as its parent sees it.

Belongs here: starting it, one request at a time, its deadline, and what its death means. Does not: sharing it out.
"""

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, cast

from pydantic import BaseModel, ValidationError

from fltr_pipeline.errors import ConfigurationError, DocumentError, MemoryLimit, ParserCrash, TimeLimit, TooLarge
from fltr_pipeline.models import ParsedDocument
from fltr_pipeline.text.parse import wire
from fltr_pipeline.text.parse.worker import PAGE, READY

WORKER = ("-P", "-m", "fltr_pipeline.text.parse.worker")
"""What Python is to run; `-P` because the current folder may hold a file that is named like a module."""

_START_SECONDS = 120.0
"""Limit for starting Python: generous, since a loaded machine is no fault of any document."""

_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
"""All that a parser gets to see of the environment: no credentials."""

_LAST_WORDS = 2000
_NO_MEMORY = ("memory allocation of", "bad_alloc", "out of memory", "cannot allocate memory", "memoryerror")
"""What Rust, C++, C and Python say when they end for want of memory; pdfium aborts without a word."""

_LOG = logging.getLogger(__name__)
_ERRORS = {kind.code: kind for kind in DocumentError.__subclasses__()}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one document may take."""

    seconds: float
    """Wall clock; it begins anew with each page that OCR reads."""
    memory_mb: int
    """Address space of the process, MiB."""
    text_bytes: int
    """Length of the answer."""
    pdf_engine: str
    ocr_pages: int = 0
    """Pages that may be recognised; 0: OCR is off."""


class _Answer(BaseModel):
    document: ParsedDocument | None = None
    error: str = ParserCrash.code
    message: str = ""


class ParserProcess:
    """Used by one thread; only `kill` may be called from another."""

    def __init__(self, limits: Limits) -> None:
        """Start the process; `wait_until_ready` before the first document."""
        self._limits = limits
        self._noise: int | None = os.memfd_create("parser-stderr")
        # Linux lets a new process begin with the peak of the one that started it.
        self._inherited_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._popen = subprocess.Popen(  # noqa: S603  our own module
            [
                *(sys.executable, *WORKER),
                *(str(limits.memory_mb), str(limits.seconds), limits.pdf_engine, str(limits.ocr_pages)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        self._requests = cast(BinaryIO, self._popen.stdin)
        self._answers = cast(BinaryIO, self._popen.stdout)
        self.served = 0
        """Documents that it has answered."""
        self.usable = True
        """Whether it can take another document."""

    def wait_until_ready(self) -> None:
        """Wait for the process to have started.

        Raises:
            ConfigurationError: it does not start; the message has its last words.
        """
        try:
            with self._deadline(_START_SECONDS):
                if wire.receive(self._answers, len(READY)) == READY:
                    return
        except (EOFError, wire.FrameTooLong):
            pass
        self.usable = False
        raise ConfigurationError(
            f"the parser process does not start within {self._limits.memory_mb} MB (FLTR_PARSE_MEMORY_MB): "
            f"{self._last_words()}"
        )

    def parse(self, filename: str, data: bytes, on_page: Callable[[], None] = lambda: None) -> ParsedDocument:
        """The document's text; `on_page` is called as OCR begins with each page.

        Raises:
            DocumentError: what the parser says, or TimeLimit, MemoryLimit, ParserCrash, TooLarge.
        """
        late = threading.Event()
        try:
            with self._deadline(self._limits.seconds, late):
                wire.send(self._requests, filename.encode("utf-8", "surrogatepass"), data)
                answer = wire.receive(self._answers, self._limits.text_bytes)
            while answer == PAGE:
                on_page()
                with self._deadline(self._limits.seconds, late):
                    answer = wire.receive(self._answers, self._limits.text_bytes)
        except wire.FrameTooLong as error:
            self.usable = False
            raise TooLarge(f"{filename}: its text has {error}, far more than a file may have; split the file") from None
        except (EOFError, OSError):
            self.usable = False
            if late.is_set():
                raise TimeLimit(f"{filename}: parsing took longer than {self._limits.seconds:g} seconds") from None
            raise self._death(filename) from None
        self.served += 1
        if late.is_set():  # the answer came just before the process was killed
            self.usable = False
        return _document(answer, filename)

    def kill(self) -> None:
        """End it now."""
        self._popen.kill()

    def close(self) -> None:
        """End it, wait for it, and free what it holds."""
        self.usable = False
        self._popen.kill()
        self._popen.wait()
        with suppress(OSError):  # what was buffered for a dead process
            self._requests.close()
        self._answers.close()
        if self._noise is not None:
            os.close(self._noise)
            self._noise = None

    @contextmanager
    def _deadline(self, seconds: float, late: threading.Event | None = None) -> Iterator[None]:
        """Kill the process unless the block ends in time: a killed process ends every read and write of the block."""

        def expire() -> None:
            if late:
                late.set()
            self._popen.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _death(self, filename: str) -> DocumentError:
        """Native code that gets no memory dies of a signal: how much the process had tells that from other crashes."""
        try:
            _, status, usage = os.wait4(self._popen.pid, 0)
        except ChildProcessError:  # reaped by another thread's `kill`
            return ParserCrash(f"{filename}: the parser process was ended")
        self._popen.returncode = code = os.waitstatus_to_exitcode(status)
        words = self._last_words()
        _LOG.warning("the parser process died with exit code %d on %s: %s", code, filename, words)
        half_of_limit = self._limits.memory_mb << 9  # KiB, as ru_maxrss
        refused = any(phrase in words.lower() for phrase in _NO_MEMORY) or (code == -signal.SIGABRT and not words)
        if refused or usage.ru_maxrss > max(half_of_limit, self._inherited_peak):
            return MemoryLimit(f"{filename}: parsing needs more than {self._limits.memory_mb} MB of memory")
        return ParserCrash(f"{filename}: the parser process died with exit code {code}")

    def _last_words(self) -> str:
        if self._noise is None:
            return ""
        size = os.fstat(self._noise).st_size
        return os.pread(self._noise, _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").strip()


def _document(answer: bytes, filename: str) -> ParsedDocument:
    try:
        outcome = _Answer.model_validate_json(answer)
    except ValidationError:
        raise ParserCrash(f"{filename}: the parser process gave no proper answer") from None
    if outcome.document is not None:
        return outcome.document
    raise _ERRORS.get(outcome.error, ParserCrash)(outcome.message)
