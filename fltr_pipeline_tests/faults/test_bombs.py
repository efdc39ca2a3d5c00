"""Bombs, through real parser processes: each is that file's typed failure or its text, and nothing stays behind."""

from pathlib import Path

import pytest

from fltr_pipeline.errors import DocumentError
from fltr_pipeline.models import ParsedDocument
from fltr_pipeline.text.parse.pool import ParserPool
from fltr_pipeline_tests.faults.bombs import BOMBS
from fltr_pipeline_tests.processes import children

MB = 1 << 20
EXACTLY = {
    "zip.docx": "too_large",
    "zip.xlsx": "memory_limit",
    "laughs.docx": "corrupt",
    "deep.docx": "corrupt",
    "sparse.xlsx": "memory_limit",
    "repeated.epub": "ready",
    "deep.html": "corrupt",
    "deep.json": "corrupt",
    "deep.eml": "corrupt",
    "huge_page_tree.pdf": "too_large",
    "decompression_bomb.pdf": "memory_limit",
}
TYPED = {"too_large", "memory_limit", "time_limit", "corrupt", "empty", "no_text_layer"}


def test_a_bomb_hurts_nobody_but_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    names = [name for bomb in BOMBS for name in (bomb, f"after {bomb}.txt")]
    with ParserPool(2, 20, 512, 64 * MB) as pool:
        files = ((name, name, BOMBS.get(name, b"words")) for name in names)
        outcomes = dict(pool.parse_all(files))
    codes = {
        name: outcome.code if isinstance(outcome, DocumentError) else "ready"
        for name, outcome in outcomes.items()
        if name in BOMBS
    }
    assert {name: codes[name] for name in EXACTLY} == EXACTLY
    assert set(codes.values()) <= TYPED | {"ready"}, codes
    assert all(isinstance(outcomes[f"after {name}.txt"], ParsedDocument) for name in BOMBS)
    assert list(tmp_path.iterdir()) == []
    assert children("text.parse.worker") == []
