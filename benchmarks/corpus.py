"""Documents to measure with: real ones where `FLTR_TEST_DATA` names a folder of them, else the packaged samples.

Belongs here: reading, cutting and editing texts, all by seed. Does not: uploading them.
"""

import os
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fltr_pipeline.samples import sample_files
from fltr_pipeline.text.parse import parse

_SUFFIXES = {".txt", ".md"}
_LONGEST_PARAGRAPH = 2_000


def source() -> str:
    """Where the texts come from, for the table's caption."""
    return "real documents of FLTR_TEST_DATA" if "FLTR_TEST_DATA" in os.environ else "the packaged sample documents"


@cache
def texts() -> tuple[str, ...]:
    """The texts, each as it was written."""
    if "FLTR_TEST_DATA" not in os.environ:
        files = [path for _, path in sample_files() if path.suffix in _SUFFIXES]
    else:
        roots = [_test_data(name) for name in ("demo", "extraction")]
        files = [path for root in roots for path in sorted(root.rglob("*")) if path.suffix in _SUFFIXES]
    return tuple(path.read_text(encoding="utf-8", errors="replace") for path in files)


def paragraphs(text: str) -> list[str]:
    """What stands between blank lines."""
    return [part[:_LONGEST_PARAGRAPH] for part in text.split("\n\n") if part.strip()]


def documents(count: int, characters: int, seed: int = 1) -> dict[str, str]:
    """filename → text: real paragraphs in an order that no other document has, up to about `characters`."""
    everything = [paragraph for text in texts() for paragraph in paragraphs(text)]
    rng = random.Random(seed)
    return {f"{number:05}.txt": _document(everything, characters, rng) for number in range(count)}


def large_documents() -> dict[str, str]:
    """Real documents of 200 to 1,500 chunks; the largest are others, one after the other."""
    markdown = [path.read_text(encoding="utf-8") for name, path in sample_files() if path.suffix == ".md"]
    found = {"manuals, Markdown": "\n\n".join(markdown)}
    for name, path in sample_files():
        if name.endswith("debian-fhs-3.0.en.pdf"):
            found["standard, PDF"] = parse(path.read_bytes(), name).text
    if "FLTR_TEST_DATA" in os.environ:
        books = {p.stem: p.read_text(encoding="utf-8") for p in _test_data("extraction").rglob("debmake-doc.*.txt")}
        found |= {f"{name}, text": books[name] for name in sorted(books)}
        found["both and the manuals, text"] = "\n\n".join([*markdown, books["debmake-doc.en"], books["debmake-doc.de"]])
    return found


def _test_data(folder: str) -> Path:
    return Path(os.environ["FLTR_TEST_DATA"], folder)


def _document(everything: Sequence[str], characters: int, rng: random.Random) -> str:
    parts: list[str] = []
    while sum(map(len, parts)) < characters:
        parts.append(rng.choice(everything))
    return "\n\n".join(parts)
