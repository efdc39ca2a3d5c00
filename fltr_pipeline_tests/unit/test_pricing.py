"""From pages and tokens to units of the price list."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.credits import pricing
from fltr_pipeline.models import Op
from fltr_pipeline.settings import Prices
from fltr_pipeline.text.parse import parse
from fltr_pipeline_tests.office import docx, epub, paragraph, xlsx

SIZES = st.integers(0, 10**12)


@given(quantity=SIZES, per=st.integers(1, 10**6))
def test_a_unit_begun_is_a_whole_unit_and_not_one_more(quantity: int, per: int) -> None:
    units = pricing.begun(quantity, per)
    assert (units - 1) * per < quantity <= units * per or (units == quantity == 0)


@pytest.mark.parametrize(("quantity", "units"), [(-5, 0), (0, 0), (1, 1), (100, 1), (101, 2)])
def test_units_at_their_edges(quantity: int, units: int) -> None:
    assert pricing.begun(quantity, 100) == units


@given(size=SIZES, more=SIZES)
def test_an_estimate_is_at_least_a_page_and_grows_with_the_file(size: int, more: int) -> None:
    for name in ("a.pdf", "A.PDF", "a.txt", "pdf", ""):
        assert 1 <= pricing.estimated_pages(name, size) <= pricing.estimated_pages(name, size + more)
    assert pricing.estimated_pages("A.PDF", size) == pricing.estimated_pages("a.pdf", size)


@given(text=st.text(max_size=200), times=st.integers(1, 100))
def test_a_text_is_never_charged_more_pages_than_were_estimated(text: str, times: int) -> None:
    content = text * times
    estimated = pricing.estimated_pages("a.txt", len(content.encode(errors="replace")))
    assert pricing.counted_pages("text", 1, len(content)) <= estimated


PROSE = "The quick brown fox jumps over the lazy dog, and nobody knows why it would. " * 40
RANDOM = random.Random(7)
ROWS = [[RANDOM.randrange(1000) for _ in range(8)] for _ in range(1000)]


@pytest.mark.parametrize(
    ("filename", "data"),
    [
        ("a.csv", "\n".join(",".join(map(str, row)) for row in ROWS).encode()),
        ("a.json", json.dumps(ROWS, separators=(",", ":")).encode()),
        ("a.jsonl", "\n".join(json.dumps({"n": row[0]}, separators=(",", ":")) for row in ROWS).encode()),
        (
            "a.xlsx",
            xlsx({"S": "".join(f"<row>{''.join(f'<c><v>{n}</v></c>' for n in row)}</row>" for row in ROWS)}),
        ),
        ("a.DOCX", docx("".join(paragraph(f"{RANDOM.randbytes(200).hex()} {n}") for n in range(100)))),
        ("a.epub", epub([f"<p>{RANDOM.randbytes(20_000).hex()}</p>"])),
        ("a.md", PROSE.encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_dense_file_is_estimated_at_what_it_has_or_more(filename: str, data: bytes) -> None:
    parsed = parse(data, filename)
    pages = pricing.counted_pages(parsed.kind, parsed.pages, len(parsed.text))
    assert pages > 1 or filename == "a.md"
    assert pages <= pricing.estimated_pages(filename, len(data))


def test_a_pdf_has_pages_of_its_own_and_other_formats_three_thousand_characters_each() -> None:
    assert pricing.counted_pages("pdf", 7, 1_000_000) == 7
    assert pricing.counted_pages("pdf", 0, 0) == pricing.counted_pages("html", 1, 0) == 1
    assert [pricing.counted_pages("markdown", 99, n) for n in (2999, 3000, 3001, 9001)] == [1, 1, 2, 4]


def test_a_typical_document_is_a_unit_of_each() -> None:
    prices = Prices()
    assert pricing.extract_units(prices, pricing.estimated_pages("a.pdf", 150_000)) == 1
    assert pricing.embed_units(prices, 60_000) == 1
    assert pricing.embed_units(prices, 0) == 0
    assert pricing.extract_units(Prices(extract_pages=10), 11) == 2
    assert pricing.embed_units(Prices(embed_tokens=1000), 2001) == 3


def test_pages_read_by_ocr_take_further_units_of_which_a_scan_reserves_an_estimate() -> None:
    prices = Prices(extract_pages=100, ocr_pages=10)
    assert [pricing.extract_units(prices, 20, read) for read in (0, 1, 10, 11)] == [1, 2, 2, 3]
    assert pricing.estimated_ocr_pages("A.PDF", 95_000, most=1000) == 10
    assert pricing.estimated_ocr_pages("a.tiff", 10**9, most=1000) == 1000
    assert pricing.estimated_ocr_pages("a.docx", 10**9, most=1000) == 0
    assert pricing.estimated_ocr_pages("a.pdf", 10**9, most=0) == 0, "OCR is off"
    assert pricing.counted_pages("image", 3, 50_000) == 3


def test_each_op_has_its_price() -> None:
    prices = Prices(dataset_setup=1, extract=2, plan=3, embed=4)
    assert pricing.unit_prices(prices) == {
        Op.DATASET_SETUP: 1, Op.DOCUMENT_EXTRACT: 2, Op.DOCUMENT_PLAN: 3, Op.DOCUMENT_EMBED: 4,
    }  # fmt: skip
    assert set(pricing.unit_prices(prices)) == set(Op)
