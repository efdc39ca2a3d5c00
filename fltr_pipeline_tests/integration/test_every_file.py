"""Every file of the folder in `FLTR_TEST_DATA` through the pipeline in one go: each ends ready, or failed with the code
that its category demands. Without that folder: the same on files made here.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fltr_pipeline.failures import ADVICE
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests import pdfs
from fltr_pipeline_tests.office import docx, paragraph
from fltr_pipeline_tests.processes import children
from fltr_pipeline_tests.world import World

PARTLY = {"ocrmypdf/multipage.pdf"}
"""Said to have no text; its fourth page, which was not sampled, has."""

MADE = {
    "a.pdf": (pdfs.pdf(["words"]), "ready"),
    "scan.pdf": (pdfs.pdf([""]), "no_text_layer"),
    "locked.pdf": (pdfs.pdf(["words"], password="hush"), "encrypted"),
    "open.pdf": (pdfs.pdf(["words"], password=""), "ready"),
    "none.pdf": (pdfs.pdf([]), "empty"),
    "cut.pdf": (pdfs.pdf(["words"])[:100], "corrupt"),
    "really.docx.pdf": (docx(paragraph("words")), "ready"),
}


def expected(categories: set[str]) -> str:
    if "malformed_pypdf_cannot_open" in categories:
        return "corrupt"
    if "enc_needs_password" in categories:
        return "encrypted"
    if "zero_pages" in categories:
        return "empty"
    return "no_text_layer" if categories & {"image_only", "no_text"} else "ready"


def files() -> Iterator[tuple[str, bytes, str | None]]:
    """Name, bytes, and the code to expect (None: any)."""
    if not (given := os.environ.get("FLTR_TEST_DATA")):
        yield from ((name, data, code) for name, (data, code) in MADE.items())
        return
    folder = Path(given)
    with (folder / "pdf/CATEGORIES.tsv").open() as lines:
        rows = {row["path"]: row["categories"].split(",") for row in csv.DictReader(lines, delimiter="\t")}
    for path in sorted(path for part in ("pdf", "formats") for path in (folder / part).rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        categories = rows.get(name.removeprefix("pdf/"))
        known = categories is not None and "duplicate" not in categories
        code = expected(set(categories or ())) if known else None
        yield name, path.read_bytes(), "ready" if name.removeprefix("pdf/") in PARTLY else code


def test_every_file_ends_ready_or_with_the_code_of_its_category(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Millions of tokens: the vectors are not what is looked at here.
    monkeypatch.setattr(
        EmbeddingModel, "encode", lambda self, texts: [[1.0] + [0.0] * (self.dimension - 1)] * len(texts)
    )
    found = list(files())
    dataset = world.dataset(world.user(credits=100_000))
    world.upload(dataset, {name.replace("/", "__"): data for name, data, _ in found})
    _, extracted, *_ = world.process(dataset)
    codes = {failure.filename: failure.code for failure in extracted.failures}
    assert set(codes.values()) <= set(ADVICE) - {"parser_crash", "time_limit", "memory_limit", "internal_error"}
    statuses = world.statuses(dataset)
    assert set(statuses.values()) <= {"ready", "failed"}
    ends = {name: codes.get(name.replace("/", "__"), statuses[name.replace("/", "__")]) for name, _, _ in found}
    assert {name: ends[name] for name, _, code in found if code} == {name: code for name, _, code in found if code}
    assert children("text.parse.worker") == []
