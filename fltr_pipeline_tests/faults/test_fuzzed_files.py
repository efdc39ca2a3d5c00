"""Damaged files by the hundred, through real parser processes: text or a typed failure, never a death of the parent.

Half are cut, half have bytes changed, packed ones also within their parts, with `FLTR_SEED`; `FLTR_FAULTS=long` takes
25 times as many.
"""

import io
import os
import random
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fltr_pipeline.errors import DocumentError, ParserCrash
from fltr_pipeline.models import ParsedDocument
from fltr_pipeline.samples import sample_files
from fltr_pipeline.text.parse.pool import Item, ParserPool
from fltr_pipeline_tests.office import archive, cell, docx, epub, odf, paragraph, pptx, shape, xlsx
from fltr_pipeline_tests.pdfs import pdf
from fltr_pipeline_tests.processes import children

MB = 1 << 20
LONG = os.environ.get("FLTR_FAULTS") == "long"
SEED = int(os.environ.get("FLTR_SEED") or random.SystemRandom().randrange(10**6))
MUTANTS = 10_000 if LONG else 400
SMALL_DOCUMENTS = 5_000 if LONG else 1_500
MOST_BYTES = 300_000
MOST_GROWTH = 32 * MB
"""Of the parent's memory, over thousands of documents: the allocator's own slack."""


def originals() -> dict[str, bytes]:
    """Files of every format: made here, the samples, and those of the folder in `FLTR_TEST_DATA` where that is set."""
    made = {
        "a.pdf": pdf(["some words", "", "more words"]),
        "locked.pdf": pdf(["some words"], password=""),
        "a.docx": docx(paragraph("some words") * 20),
        "a.pptx": pptx([shape("some words")] * 3),
        "a.xlsx": xlsx({"S": f'<row r="1">{cell("A1", "some words")}</row>'}),
        "a.odt": odf("<text:p>some words</text:p>" * 20),
        "a.epub": epub(["<p>some words</p>"] * 3),
        "a.html": b"<html><body>" + b"<table><tr><td>some</td><td>words</td></tr></table>" * 20,
        "a.rtf": rb"{\rtf1\ansi{\fonttbl\f0 Arial;}\f0 some \b words\b0\par " + rb"caf\'e9 \u8364? " * 20 + b"}",
        "a.json": b'{"some": ["words", 1.5, {"more": null}]}',
        "a.eml": b"From: a@b\nTo: c@d\nSubject: =?utf-8?q?e?=\nContent-Type: text/html\n\n<p>some words</p>" * 5,
        "a.csv": b'some;"words; here"\n' * 20,
    }
    folders = [Path(given) / "pdf", Path(given) / "formats"] if (given := os.environ.get("FLTR_TEST_DATA")) else []
    found = [
        *(path for _, path in sample_files()),
        *(path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()),
    ]
    return made | {path.name: path.read_bytes() for path in found if path.stat().st_size <= MOST_BYTES}


def mutants(rng: random.Random) -> Iterator[Item]:
    files = sorted(originals().items())
    for number in range(MUTANTS):
        name, content = rng.choice(files)
        packed = content.startswith(b"PK") and rng.random() < 0.7
        yield str(number), name, damaged_within(content, rng) if packed else damaged(content, rng)


def damaged(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    if data and rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.randint(0, 1 + len(data) // 100) if data else 0):
        place = rng.randrange(len(data)) if data else 0
        data[place : place + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
    return bytes(data)


def damaged_within(content: bytes, rng: random.Random) -> bytes:
    """A whole ZIP file of damaged parts: checksums would keep most other damage from the parsers."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    for name in rng.sample(sorted(parts), min(2, len(parts))):
        parts[name] = damaged(parts[name], rng) if rng.random() < 0.9 else b""
    return archive(parts)


@pytest.mark.timeout(3_600)
def test_damaged_files_give_text_or_a_type() -> None:
    print(f"FLTR_SEED={SEED}")
    with ParserPool(2, 60, 1024, 64 * MB) as pool:
        outcomes = dict(pool.parse_all(mutants(random.Random(SEED))))
    assert len(outcomes) == MUTANTS
    codes = Counter(o.code if isinstance(o, DocumentError) else "ready" for o in outcomes.values())
    print(dict(codes))
    crashes = {number: str(o) for number, o in outcomes.items() if isinstance(o, ParserCrash)}
    assert crashes == {}, f"FLTR_SEED={SEED}"
    assert set(codes) >= {"ready", "corrupt"}
    for outcome in outcomes.values():
        if isinstance(outcome, ParsedDocument):
            assert outcome.text.count("\f") == outcome.pages - 1
            outcome.text.encode()
    assert children("text.parse.worker") == []


def test_the_parent_stays_as_small_as_it_was() -> None:
    """Over thousands of documents, with as many replaced processes as that makes."""
    files = [data for name, data in sorted(originals().items()) if name.startswith("a.")]
    parent = psutil.Process()
    seen: list[int] = []
    with ParserPool(2, 60, 1024, 64 * MB) as pool:
        items = ((str(n), "a", files[n % len(files)]) for n in range(SMALL_DOCUMENTS))
        for count, _ in enumerate(pool.parse_all(items), start=1):
            if count % 100 == 0:
                seen.append(parent.memory_info().rss)
    assert max(seen) - seen[1] < MOST_GROWTH, seen
