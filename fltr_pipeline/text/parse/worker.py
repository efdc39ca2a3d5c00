"""The parser process: reads files from its standard input, answers with their text, until the input ends.

Belongs here: the loop around `parse`, and its errors as answers. Does not: parsing; limits (`confinement`);
deciding which process gets a file.

    python -m fltr_pipeline.text.parse.worker MEMORY_MB SECONDS PDF_ENGINE OCR_PAGES
"""

import json
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any, BinaryIO

from fltr_pipeline.errors import DocumentError, MemoryLimit, ParserCrash
from fltr_pipeline.text.parse import parse, wire
from fltr_pipeline.text.parse.confinement import confine
from fltr_pipeline.text.parse.ocr import Recogniser

READY = b"ready"
"""The first frame: the process has started, the first file's time may run."""

PAGE = b""
"""A frame before the answer: OCR begins with a page, the time may run anew."""

_ORPHAN_SECONDS = 10
"""What an orphan gets beyond the limit: only the parent enforces the limit itself, while it lives."""


def main(memory_mb: int, seconds: float, pdf_engine: str, ocr_pages: int = 0) -> None:
    """Answer frames (name, bytes) with one frame of JSON each: `{"document": …}` or `{"error": …, "message": …}`.

    `ocr_pages` is how many pages of a document may be recognised; 0 turns OCR off.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confine(memory_mb)
    logging.disable(logging.CRITICAL)  # parsers log every oddity of every file
    requests, answers = sys.stdin.buffer, _claimed_stdout()
    wire.send(answers, READY)

    def page_begun() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds + _ORPHAN_SECONDS)
        wire.send(answers, PAGE)

    while True:
        try:
            filename = wire.receive(requests).decode("utf-8", "surrogatepass")
            data = wire.receive(requests)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, seconds + _ORPHAN_SECONDS)
        _forget_noise()
        recogniser = Recogniser(ocr_pages, page_begun) if ocr_pages else None
        answer = _answer(data, filename, pdf_engine, recogniser)
        del data
        signal.setitimer(signal.ITIMER_REAL, 0)
        wire.send(answers, answer)


def _claimed_stdout() -> BinaryIO:
    """The answers' own stream; whatever a library prints to standard output goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _forget_noise() -> None:
    """Standard error is a file that may not grow for ever; what earlier documents caused there is of no use."""
    with suppress(OSError):  # it may be a terminal, where somebody starts a worker by hand
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)


def _answer(data: bytes, filename: str, pdf_engine: str, recogniser: Recogniser | None) -> bytes:
    try:
        return _json({"document": asdict(parse(data, filename, pdf_engine=pdf_engine, recogniser=recogniser))})
    except DocumentError as error:
        return _json({"error": error.code, "message": str(error)})
    except MemoryError:
        return _json({"error": MemoryLimit.code, "message": f"{filename}: parsing needs more memory than is allowed"})
    except Exception as error:  # noqa: BLE001  whatever a parser raises is this document's failure
        message = f"{filename}: the parser failed with {type(error).__name__}: {str(error)[:200]}"
        return _json({"error": ParserCrash.code, "message": message})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
