"""PDF: pages, judgements, and one engine standing in for the other."""

import contextlib
import random

import pytest

from fltr_pipeline.errors import Corrupt, DocumentError, Empty, Encrypted, NoTextLayer
from fltr_pipeline.text.parse import parse
from fltr_pipeline.text.parse.formats.pdf import _rejoined
from fltr_pipeline_tests.pdfs import pdf


@pytest.mark.parametrize("engine", ["pypdfium2", "pypdf"])
def test_pages_and_engine(engine: str) -> None:
    parsed = parse(pdf(["First page\nsecond line", "", "Third (page)"]), "a.pdf", pdf_engine=engine)
    assert [page.rstrip() for page in parsed.text.split("\f")] == ["First page\nsecond line", "", "Third (page)"]
    assert (parsed.pages, parsed.blank_pages, parsed.kind) == (3, (2,), "pdf")
    assert parsed.engine.split(" ")[0] == engine
    assert parsed.engine.split(" ")[1][0].isdigit()


@pytest.mark.parametrize("engine", ["pypdfium2", "pypdf"])
def test_an_empty_password_opens_it(engine: str) -> None:
    assert parse(pdf(["secret"], password=""), "a.pdf", pdf_engine=engine).text.rstrip() == "secret"


def test_a_needed_password_is_said() -> None:
    with pytest.raises(Encrypted, match=r"a\.pdf: needs a password"):
        parse(pdf(["secret"], password="hush"), "a.pdf")


def test_a_scan_has_no_text_layer() -> None:
    with pytest.raises(NoTextLayer, match="none of its 2 pages"):
        parse(pdf(["", ""]), "a.pdf")


def test_no_pages_is_empty() -> None:
    with pytest.raises(Empty, match="no pages"):
        parse(pdf([]), "a.pdf")


@pytest.mark.parametrize("data", [b"%PDF-1.7\n", b"%PDF-1.7\n%%EOF", pdf(["words"])[:100], b"\x00\x01\x02" * 100])
def test_damage_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match=r"a\.pdf"):
        parse(data, "a.pdf")


def test_junk_before_the_header_is_allowed() -> None:
    assert parse(b"\r\n junk \n" + pdf(["words"]), "a.pdf").text == "words"


def test_a_lost_cross_reference_table_is_repaired() -> None:
    data = pdf(["words"])
    assert parse(data[: data.rindex(b"xref")], "a.pdf").text == "words"


def test_damaged_files_fail_with_a_type() -> None:
    rng, whole = random.Random(5), pdf(["Some words on a page", "and more (of them)"])
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            start = rng.randrange(9, len(data))
            data[start : start + rng.randint(0, 8)] = rng.randbytes(rng.randint(0, 8))
        with contextlib.suppress(DocumentError):
            parsed = parse(bytes(data), "a.pdf")
            assert parsed.text.count("\f") == parsed.pages - 1


def test_divided_words_are_joined_as_the_document_writes_them() -> None:
    pages = ["exam\ufffeple run\ufffetime FHS\ufffecompliant non\ufffe", "a run-time system"]
    assert _rejoined(["w" * 1_000_000 + " ex\ufffeample"])[0].endswith(" example")
    assert _rejoined(pages) == ["example run-time FHS-compliant non-", "a run-time system"]
