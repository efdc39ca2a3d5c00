"""The demo's documents are what the demo promises: enough, varied, licensed, and two that fail as expected."""

from collections import Counter
from pathlib import Path

import pytest

from fltr_pipeline.errors import DocumentError
from fltr_pipeline.models import ParsedDocument
from fltr_pipeline.samples import EXPECTED_FAILURES, QUERIES, SOURCES, folder, make_broken, sample_files
from fltr_pipeline.text.chunk import chunk_text
from fltr_pipeline.text.model import DEFAULT_MODEL, EmbeddingModel
from fltr_pipeline.text.parse import parse

PATHS = dict(sample_files())


@pytest.fixture(scope="module")
def parsed() -> dict[str, ParsedDocument]:
    """Those that can be read."""
    return {name: parse(path.read_bytes(), name) for name, path in PATHS.items() if name not in EXPECTED_FAILURES}


def test_filenames_are_unique_and_no_licence_is_uploaded() -> None:
    assert len(PATHS) == len(sample_files()) == 26
    assert not [name for name in PATHS if name.startswith(("LICENSE", "copyright"))]


def test_there_are_enough_readable_ones_of_each_kind(parsed: dict[str, ParsedDocument]) -> None:
    assert len(parsed) >= 20
    kinds = Counter(document.kind for document in parsed.values())
    assert kinds == {"markdown": 15, "html": 5, "pdf": 2, "text": 2}
    assert {name: document.pages for name, document in parsed.items() if document.kind == "pdf"} == {
        "debian-fhs-3.0.en.pdf": 50,
        "debmake-doc.en.pdf": 143,
    }


def test_they_embed_in_about_a_minute_and_are_small(parsed: dict[str, ParsedDocument]) -> None:
    tokenizer = EmbeddingModel(DEFAULT_MODEL, batch_size=32, threads=0).tokenizer
    chunks = [chunk for document in parsed.values() for chunk in chunk_text(document.text, tokenizer, max_tokens=254)]
    assert len(chunks) < 1300
    assert sum(path.stat().st_size for path in folder().rglob("*") if path.is_file()) < 2_500_000


@pytest.mark.parametrize("engine", ["pypdfium2", "pypdf"])
@pytest.mark.parametrize(("filename", "code"), EXPECTED_FAILURES.items())
def test_the_broken_ones_fail_as_expected(filename: str, code: str, engine: str) -> None:
    with pytest.raises(DocumentError) as failure:
        parse(PATHS[filename].read_bytes(), filename, pdf_engine=engine)
    assert failure.value.code == code


def test_the_broken_ones_can_be_made_anew(tmp_path: Path) -> None:
    make_broken.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(EXPECTED_FAILURES)
    for filename, code in EXPECTED_FAILURES.items():
        with pytest.raises(DocumentError) as failure:
            parse((tmp_path / filename).read_bytes(), filename)
        assert failure.value.code == code


def test_each_query_asks_for_a_document_that_can_be_found(parsed: dict[str, ParsedDocument]) -> None:
    assert len(QUERIES) == 3
    assert {query.filename for query in QUERIES} <= set(parsed)


def test_each_source_keeps_its_licence() -> None:
    for source in SOURCES:
        assert list((folder() / source).glob("LICENSE*")) or list((folder() / source).glob("copyright.*"))
    readme = (folder() / "README.md").read_text()
    for name in [name for name, path in PATHS.items() if path.parent.name == "debian" and path.suffix != ".html"]:
        assert f"debian/{name}" in readme
