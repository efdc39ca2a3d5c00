"""Each format other than PDF, HTML and plain text: what reads well, what is left out, and typed failures."""

import json

import pytest
import python_calamine

from fltr_pipeline.errors import Corrupt, Empty, Encrypted, TooLarge
from fltr_pipeline.text.parse import archive as archives
from fltr_pipeline.text.parse import parse
from fltr_pipeline.text.parse.formats import formats
from fltr_pipeline.text.parse.sample import OLE
from fltr_pipeline_tests.office import archive, cell, docx, epub, odf, paragraph, pptx, shape, xlsx

HEADING = '<w:style w:styleId="H"><w:name w:val="heading 2"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>'
DERIVED = '<w:style w:styleId="D"><w:basedOn w:val="H"/></w:style>'
CIRCLE = '<w:style w:styleId="X"><w:basedOn w:val="X"/></w:style>'


def test_formats_have_names_of_their_own() -> None:
    assert len({form.kind for form in formats()}) == len(formats()) == 14
    suffixes = [suffix for form in formats() for suffix in form.suffixes]
    assert len(set(suffixes)) == len(suffixes)


# --- Word -------------------------------------------------------------------------------------------------------------


def test_docx_reads_in_its_order() -> None:
    row = "<w:tr><w:tc>{}</w:tc><w:tc>{}</w:tc></w:tr>"
    table = row.format(paragraph("A"), paragraph("B")) + row.format(paragraph("1") + paragraph("one"), paragraph("2"))
    body = (
        paragraph("Chapter", '<w:pStyle w:val="H"/>')
        + paragraph("Section", '<w:pStyle w:val="D"/>')
        + paragraph("Plain", '<w:pStyle w:val="X"/>')
        + paragraph("first", "<w:numPr/>")
        + paragraph("second", "<w:numPr/>")
        + paragraph("")
        + f"<w:tbl>{table}</w:tbl>"
        + "<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r>"
        + "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:ins><w:r><w:t> d</w:t></w:r></w:ins></w:p>"
    )
    note = '<w:footnote w:type="separator"><w:p/></w:footnote><w:footnote>' + paragraph("A note.") + "</w:footnote>"
    parsed = parse(docx(body, styles=HEADING + DERIVED + CIRCLE, footnotes=note), "a.docx")
    assert parsed.text == (
        "## Chapter\n\n## Section\n\nPlain\n\n- first\n- second\n\nA | B\n1 one | 2\n\na\tb\nc d\n\nA note."
    )
    assert (parsed.kind, parsed.pages) == ("docx", 1)


def test_docx_whose_document_has_another_name() -> None:
    assert parse(docx(paragraph("words"), part="word/document2.xml"), "a.docx").text == "words"


def test_a_text_box_is_read_once() -> None:
    box = "<mc:{0} xmlns:mc='m'><w:txbxContent>" + paragraph("boxed") + "</w:txbxContent></mc:{0}>"
    body = f"<w:p><w:r>{box.format('Choice')}{box.format('Fallback')}</w:r></w:p>"
    assert parse(docx(body), "a.docx").text == "boxed"


# --- PowerPoint -------------------------------------------------------------------------------------------------------


def test_pptx_has_a_page_per_slide() -> None:
    table = "<a:tbl><a:tr><a:tc><a:p><a:r><a:t>A</a:t></a:r></a:p></a:tc><a:tc><a:p/></a:tc></a:tr></a:tbl>"
    slides = [shape("Title", "title") + shape("Words") + shape("7", "sldNum"), "", table]
    parsed = parse(pptx(slides, notes=shape("To be said", "body") + shape("1", "sldNum")), "a.pptx")
    assert parsed.text == "# Title\n\nWords\n\nNotes:\nTo be said\f\fA"
    assert (parsed.kind, parsed.pages, parsed.blank_pages) == ("pptx", 3, (2,))


def test_pptx_without_slides_is_empty() -> None:
    with pytest.raises(Empty, match="no slides"):
        parse(pptx([]), "a.pptx")


# --- spreadsheets -----------------------------------------------------------------------------------------------------


def test_xlsx_has_a_page_per_sheet_and_a_line_per_row() -> None:
    head = f'<row r="1">{cell("A1", "Name")}{cell("B1", "Sum")}</row>'
    rows = f'{head}<row r="3">{cell("A3", "x y")}<c r="B3"><v>2.50</v></c></row>'
    whole = '<row r="1"><c r="A1"><v>12</v></c><c r="C1" t="b"><v>1</v></c></row>'
    parsed = parse(xlsx({"First": rows, "None": "", "Last": whole}), "a.xlsx")
    assert parsed.text == "# First\n\nName | Sum\nx y | 2.5\f# Last\n\n12 |  | TRUE"
    assert (parsed.kind, parsed.pages) == ("spreadsheet", 2)


def test_numbers_that_are_far_too_large_stay_short() -> None:
    row = '<row r="1"><c r="A1"><v>1e308</v></c><c r="B1"><v>1e15</v></c><c r="C1"><v>-2.5</v></c></row>'
    assert parse(xlsx({"S": row}), "a.xlsx").text == "# S\n\n1e+308 | 1000000000000000 | -2.5"


def test_an_empty_workbook_is_empty() -> None:
    with pytest.raises(Empty):
        parse(xlsx({"One": ""}), "a.xlsx")


def test_a_panic_of_calamine_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panics(_: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(python_calamine, "load_workbook", panics)
    with pytest.raises(Corrupt, match="index out of bounds"):
        parse(xlsx({"One": ""}), "a.xlsx")


# --- OpenDocument -----------------------------------------------------------------------------------------------------


def test_odt_reads_as_text() -> None:
    body = (
        '<text:h text:outline-level="2">Head</text:h><text:p>One<text:s text:c="2"/>two <text:span>three</text:span>'
        "<text:note><text:note-citation>1</text:note-citation><text:p>noted</text:p></text:note>.</text:p>"
        "<text:list><text:list-item><text:p>item</text:p></text:list-item></text:list>"
        "<table:table> <table:table-row> <table:table-cell><text:p>A</text:p></table:table-cell>"
        "<table:table-cell><text:p>B</text:p></table:table-cell></table:table-row></table:table>"
        "<office:annotation><text:p>comment</text:p></office:annotation>"
    )
    parsed = parse(odf(body), "a.odt")
    assert parsed.text.replace("\n\n", "\n") == "## Head\nOne  two three [\nnoted\n].\n- item\nA | B"
    assert parsed.kind == "odf"


def test_odp_has_a_page_per_slide() -> None:
    body = "<draw:page><text:p>one</text:p></draw:page><draw:page><text:p>two</text:p></draw:page>"
    assert parse(odf(body, "presentation"), "a.odp").text == "one\ftwo"


# --- EPUB, RTF --------------------------------------------------------------------------------------------------------


def test_epub_has_a_page_per_chapter() -> None:
    parsed = parse(epub(["<h1>One</h1><p>first</p>", "<p>second</p>"], encrypted="book/font.otf"), "a.epub")
    assert parsed.text == "# One\n\nfirst\fsecond"
    assert (parsed.kind, parsed.pages) == ("epub", 2)


def test_rtf_writes_characters_beyond_the_first_plane_in_two_halves() -> None:
    assert parse(rb"{\rtf1\uc1 a \u-10179?\u-8704? b \u-10179? c}", "a.rtf").text == "a \U0001f600 b  c"


def test_rtf_reads_as_text() -> None:
    data = rb"{\rtf1\ansi{\fonttbl\f0 Arial;}\f0 caf\'e9 \u8364? \b bold\b0\par next}"
    assert parse(data, "a.rtf").text == "café € bold\nnext"


# --- e-mail -----------------------------------------------------------------------------------------------------------

MAIL = """From: =?utf-8?q?J=C3=BCrgen?= <j@example.org>
To: b@example.org
Subject: =?iso-8859-1?q?Gr=FC=DFe?= and more
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=B

--B
Content-Type: multipart/alternative; boundary=C

--C
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Sch=F6ne Worte
--C
Content-Type: text/html

<p>never read</p>
--C--
--B
Content-Type: text/html

<p>A page</p>
--B
Content-Type: application/pdf
Content-Disposition: attachment; filename=report.pdf

%PDF-
--B
Content-Type: message/rfc822

From: c@example.org
Subject: inner

deep words
--B--
"""


def test_email_reads_as_text() -> None:
    parsed = parse(MAIL.encode(), "a.eml")
    assert parsed.text == (
        "# Grüße and more\n\nFrom: Jürgen <j@example.org>\nTo: b@example.org\n\nSchöne Worte\n\nA page\n\n"
        "# inner\n\nFrom: c@example.org\n\ndeep words\n\nAttached: report.pdf"
    )
    assert parsed.kind == "email"


def _mail(kind: str, body: bytes, encoding: str = "8bit") -> bytes:
    head = f"From: a@b\nTo: c@d\nSubject: s\nContent-Type: {kind}\nContent-Transfer-Encoding: {encoding}\n\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text/html; charset=windows-1251", "<p>Привет</p>".encode("cp1251"), "Привет"),
        ("text/plain; charset=utf-7", "Grüße +- mehr".encode("utf-7"), "Grüße +- mehr"),
        ("text/plain; charset=hz-gb-2312", "世界人权".encode("hz"), "世界人权"),
        ("text/plain; charset=unknown-8bit", b"words", "words"),
        ("text/html; charset=utf-8", "<meta charset=latin-1><p>Grüße</p>".encode(), "Grüße"),
    ],
)
def test_a_mail_is_in_the_encoding_that_it_says(kind: str, body: bytes, text: str) -> None:
    assert parse(_mail(kind, body), "a.eml").text.endswith(f"\n\n{text}")


def test_a_page_saved_with_its_style_is_read_without_that() -> None:
    parts = [("text/html", "<p>words</p>"), ("text/css", "p { color: red }"), ("text/javascript", "run()")]
    body = "".join(f"--x\nContent-Type: {kind}\n\n{content}\n" for kind, content in parts)
    page = f"MIME-Version: 1.0\nContent-Type: multipart/related; boundary=x\n\n{body}--x--\n"
    parsed = parse(page.encode(), "a.mht")
    assert (parsed.kind, parsed.text) == ("email", "words")


def test_malformed_headers_are_read_as_they_stand() -> None:
    data = b"From: =?nonsense?q?x?=\nTo: <<<>>\nSubject: =?utf-8?b?!!!?=\nDate: never\nContent-Type: ;;;\n\nwords"
    assert parse(data, "a.eml").text.endswith("words")


# --- CSV, JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ('a,b\n"1, 2","x\ny"\n,\n', "a | b\n1, 2 | x y"),
        ("a;b\n1;2,5\n3;4,5\n", "a | b\n1 | 2,5\n3 | 4,5"),
        ("a\tb\n1\t2\n", "a | b\n1 | 2"),
        ("one\ntwo\n", "one\ntwo\n"),
        ("sep=;\r\na;b,c\r\n1;2,5\r\n", "a | b,c\n1 | 2,5"),
    ],
)
def test_csv(data: str, text: str) -> None:
    assert parse(data.encode(), "a.csv").text == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"a": "é", "b": [1, {"c": None}], "d": {}}, "a: é\nb:\n  - 1\n  -\n    c: null\nd:"),
        ([1.5, True], "- 1.5\n- true"),
    ],
)
def test_json(data: object, text: str) -> None:
    assert parse(json.dumps(data).encode(), "a.json").text == text


def test_json_lines_and_what_merely_looks_like_json() -> None:
    assert parse(b'{"a": 1}\n\n{"a": 2}\n', "a.jsonl").text == "a: 1\na: 2"
    assert parse(b'{"a": 1,}', "a.json").text == '{"a": 1,}'


# --- typed failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "data"),
    [
        ("a.docx", docx("<w:p/>")[:200]),
        ("a.docx", archive({"word/other.xml": ""})),
        ("a.docx", docx("<w:p>")),
        ("a.docx", docx("<w:p>" * 3000)),
        ("a.pptx", archive({"ppt/presentation.xml": "<p>"})),
        ("a.xlsx", archive({"xl/workbook.xml": "<p>"})),
        ("a.xlsx", b"\x00\x01\x02" * 100),
        ("a.xls", OLE + "Workbook\0".encode("utf-16-le") + bytes(600)),
        ("a.odt", odf("<text:p>")),
        ("a.epub", archive({"mimetype": "application/epub+zip"})),
        ("a.epub", epub([])),
        ("a.json", b"[" * 100_000 + b"]" * 100_000),
        ("a.eml", b"From: a\nTo: b\nSubject: c\nContent-Type: message/rfc822\n\n" * 1000 + b"words"),
    ],
)
def test_damage_is_corrupt(filename: str, data: bytes) -> None:
    with pytest.raises(Corrupt, match=filename):
        parse(data, filename)


@pytest.mark.parametrize(
    ("filename", "data"),
    [
        ("a.docx", OLE + bytes(500) + "EncryptedPackage\0".encode("utf-16-le")),
        ("a.odt", odf("", manifest="<encryption-data/>")),
        ("a.epub", epub(["<p>words</p>"], encrypted="book/text/c%200.xhtml")),
    ],
)
def test_a_password_is_told(filename: str, data: bytes) -> None:
    with pytest.raises(Encrypted, match=filename):
        parse(data, filename)


def test_entities_are_neither_resolved_nor_expanded() -> None:
    laughs = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    xml = f'<!DOCTYPE x [<!ENTITY e0 "ha">{laughs}<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    with pytest.raises(Corrupt, match="entit"):
        parse(archive({"word/document.xml": '<!DOCTYPE x [<!ENTITY a "b">]><x><t>words &a;</t></x>'}), "a.docx")
    with pytest.raises(Corrupt, match="entit"):
        parse(archive({"word/document.xml": xml + "<x><t>&e9;&f;</t></x>"}), "a.docx")


def test_a_zip_bomb_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MOST_BYTES", 1 << 20)
    with pytest.raises(TooLarge, match="unpacks to more than 1 MB"):
        parse(docx(paragraph(" " * (2 << 20))), "a.docx")
