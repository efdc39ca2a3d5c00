"""PDF: pages, judgements, and one engine standing in for the other."""

import contextlib
import random

import pytest

from fltr_pipeline.errors import Corrupt, DocumentError, Empty, Encrypted, NoTextLayer, TooLarge
from fltr_pipeline.text.parse import parse
from fltr_pipeline.text.parse.formats.pdf import _rejoined
from fltr_pipeline.text.parse.garbage import is_doubtful
from fltr_pipeline.text.parse.pdf_engines import Pypdf, Pypdfium2
from fltr_pipeline.text.parse.running_heads import without_running_heads
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


def test_words_divided_by_a_hyphen_are_joined_only_where_the_document_has_them_whole() -> None:
    assert (
        _rejoined(["an exam-\nple of run-\ntime, un-\nknown", "the example"])[0]
        == "an example of run-\ntime, un-\nknown"
    )


GARBAGE = [
    "\ufffd\ufffd\ufffd \ue001\ue002 ok",
    "(cid:12)(cid:7)(cid:33) a",
    "thesewordshavelosttheirblanks andmoreofthemalltogether",
]


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_is_doubtful(text: str) -> None:
    assert is_doubtful(text)


@pytest.mark.parametrize(
    "text",
    [
        "Plain words, as they are read by everybody.",
        "Das Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz galt in Mecklenburg-Vorpommern von 1999 "
        "bis 2013. Sein Name aber blieb noch lange danach im Gedächtnis aller, die ihn je gelesen hatten, und auch "
        "derer, die nur davon gehört hatten, dass es einmal ein so langes Wort gegeben habe, ohne es je zu sehen.",
        "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は理性と良心とを授けられ",
        "https://example.org/a/very/long/path/with_many_parts/and-more?query=string&another=one",
        "1 2 3 4.5 6 7 8 9",
    ],
)
def test_text_is_not_doubtful(text: str) -> None:
    assert not is_doubtful(text)


def test_a_page_that_one_engine_can_not_read_well_is_read_by_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def misread(*_: object) -> list[str | None]:
        return ["first page", GARBAGE[2], "3rd page", None, "last page"]

    data = pdf(["1st page", "second page", "3rd page", "fourth page", "fifth page"])
    monkeypatch.setattr(Pypdfium2, "__call__", misread)
    parsed = parse(data, "a.pdf")
    assert [page.strip() for page in parsed.text.split("\f")] == [
        "first page",
        "second page",
        "3rd page",
        "fourth page",
        "last page",
    ]
    assert [engine.split()[0] for engine in parsed.engine.split(" + ")] == ["pypdfium2", "pypdf"]


def test_a_second_opinion_that_is_no_better_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pypdfium2, "__call__", lambda *_: [GARBAGE[0], ""])
    monkeypatch.setattr(Pypdf, "__call__", lambda *_: ["\ufffd", ""])
    parsed = parse(pdf(["x", ""]), "a.pdf")
    assert parsed.engine.split()[0] == "pypdfium2"
    assert "+" not in parsed.engine
    assert parsed.blank_pages == (2,)


def test_more_pages_than_any_document_has_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pypdf, "count", lambda _: 1_000_000)
    with pytest.raises(TooLarge, match="1,000,000 pages"):
        parse(pdf(["x"]), "a.pdf")


# --- running heads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("- ", " -"), ("Page ", " of 50"), ("S. ", "")])
def test_what_a_layout_repeats_stands_once_and_page_numbers_not_at_all(prefix: str, suffix: str) -> None:
    pages = [f"Annual report\nBody of {n} differs\n\n{prefix}{n + 9}{suffix}\n" for n in range(5)]
    assert without_running_heads(pages) == [
        "Annual report\nBody of 0 differs\n\n",
        *(f"Body of {n} differs\n\n" for n in range(1, 5)),
    ]


@pytest.mark.parametrize(
    "pages",
    [
        ["Same\na", "Same\nb"],
        ["2019 7.5\nx", "2021 8.5\nx1", "2023 1.5\nx2", "2031 2.5\nx3"],
        ["Invoice 1001\nx", "Invoice 1002\ny", "Invoice 1003\nz"],
        ["1\nbody", "7\nbody!", "2\nbody?", "9\nbody:"],
        ["", "", "", ""],
        ["Chapter 1\na", "Chapter 2\nb", "Chapter 2\nc"],
        ["a\nSame\nb", "c\nSame\nd", "e\nSame\nf", "g\nSame\nh"],
    ],
)
def test_what_is_not_repeated_stays(pages: list[str]) -> None:
    assert without_running_heads(pages) == pages


def test_page_boundaries_stay_where_only_a_heading_was() -> None:
    parsed = parse(pdf(["Title", "Title", "Title\nwords", "Title"]), "a.pdf")
    assert parsed.text.split("\f") == ["Title", "", "words", ""]
    assert parsed.blank_pages == (2, 4)
