"""Telling kinds apart, decoding, and the formats other than PDF."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.errors import Corrupt, DocumentError, Empty, TooLarge, Unsupported
from fltr_pipeline.text.parse import parse
from fltr_pipeline.text.parse.formats import formats
from fltr_pipeline.text.parse.sample import OLE
from fltr_pipeline_tests.office import archive
from fltr_pipeline_tests.pdfs import pdf

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00\x90wS\xde"
HTML = b"<!DOCTYPE html><html><head><title>Title</title></head><body><p>Paragraph</p></body></html>"


NAMES = [f"a{suffix}" for form in formats() for suffix in form.suffixes[:1]] + ["a"]
MAIL = b"From: a@example.org\r\nTo: b@example.org\r\nSubject: Hello\r\n\r\nwords"


@pytest.mark.parametrize(
    ("filename", "data", "kind"),
    [
        ("a.txt", b"words", "text"),
        ("a.md", b"words", "markdown"),
        ("A.MARKDOWN", b"words", "markdown"),
        ("a.html", b"words", "html"),
        ("a.txt", HTML, "html"),
        ("a.pdf", HTML, "html"),
        ("a.pdf", b"just text", "text"),
        ("a.docx", b"just text", "text"),
        ("a.png", b"just text", "text"),
        ("a.md", HTML, "html"),
        ("noextension", b"words", "text"),
        ("noextension", HTML, "html"),
        ("noextension", b"\xef\xbb\xbf\n" + HTML, "html"),
        ("a.unknown", b"words", "text"),
        ("a.csv", b"a,b\n1,2\n", "csv"),
        ("a.txt", b"a,b\n1,2\n", "text"),
        ("a.txt", HTML.decode().encode("utf-16"), "html"),
        ("a.txt", b'{"a": 1}', "json"),
        ("a.txt", b"[1] Smith, J.: On brackets.", "text"),
        ("a.txt", b"{\\rtf1 words}", "rtf"),
        ("a.txt", MAIL, "email"),
        ("a.txt", b"From: here\nto: there\n", "text"),
        ("a.txt", b"A header such as %PDF-1.7 begins a PDF file.", "text"),
    ],
)
def test_kinds(filename: str, data: bytes, kind: str) -> None:
    assert parse(data, filename).kind == kind


@pytest.mark.parametrize("filename", ["a.pdf", "a", "a.unknown", "A.PDF", "a.txt", "a.html", "a.docx", "a.png"])
def test_a_pdf_is_known_by_its_content(filename: str) -> None:
    assert parse(pdf(["words"]), filename).kind == "pdf"


@pytest.mark.parametrize(
    ("filename", "data", "words"),
    [
        ("a.pdf", PNG, ["a PNG image"]),
        ("a.txt", PNG, ["a PNG image"]),
        ("a.png", PNG, ["a PNG image", "PDF", "Word documents (DOCX)"]),
        ("a.zip", archive({"a.txt": "words"}), ["a ZIP archive"]),
        ("a.zip", archive({"word/a.txt": "words"}), ["a ZIP archive"]),
        ("a.doc", OLE + bytes(600), ["before 2007", "save it as DOCX"]),
        ("a", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", ["gzip"]),
        ("a.exe", b"MZ\x90\x00\x03\x00\x00\x00\x04\x00", ["Windows program"]),
        ("a.ps", b"%!PS-Adobe-3.0\n", ["PostScript"]),
        ("a.bin", bytes(range(256)) * 4, ["binary data of an unknown kind"]),
        ("a.bin", codecs.BOM_UTF8 + bytes(range(256)) * 4, ["binary data of an unknown kind"]),
        ("a.heic", bytes(4) + b"ftypheic" + bytes(50), ["a HEIC image", "JPEG"]),
        ("a.avif", bytes(4) + b"ftypavif" + bytes(50), ["an AVIF image"]),
    ],
)
def test_what_is_not_read_is_named(filename: str, data: bytes, words: list[str]) -> None:
    with pytest.raises(Unsupported) as caught:
        parse(data, filename)
    assert all(word in str(caught.value) for word in [filename, *words])


@pytest.mark.parametrize("filename", ["a.txt", "a.md", "a.html", "a.pdf", "a", "a.docx"])
@pytest.mark.parametrize("data", [b"", b" \r\n\t\f"])
def test_nothing_is_empty(filename: str, data: bytes) -> None:
    with pytest.raises(Empty, match=filename):
        parse(data, filename)


@pytest.mark.parametrize("data", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE + "  \n".encode("utf-16-le"), b"\xc2\xa0\n"])
def test_nothing_but_white_space_in_any_encoding_is_empty(data: bytes) -> None:
    with pytest.raises(Empty):
        parse(data, "a.txt")


def test_a_page_without_text_is_empty() -> None:
    with pytest.raises(Empty):
        parse(b"<html><body><script>var a = 1;</script></body></html>", "a.html")


def test_no_format_has_more_pages_than_a_document_may_have() -> None:
    assert parse(b"a\f" * 99_999 + b"a", "a.txt").pages == 100_000
    with pytest.raises(TooLarge, match="has 100,001 pages, the most is 100,000"):
        parse(b"a\f" * 100_000, "a.txt")


RUSSIAN = "Люди рождаются свободными и равными в своем достоинстве и правах. "
SAMPLES = {
    "utf-8": "naïve 漢字 текст 👍",
    "utf-8-sig": "naïve 漢字 текст 👍",
    "utf-16": "naïve 漢字 текст 👍",
    "utf-32": "naïve 漢字 текст 👍",
    "utf-16-le": "plain words, and a naïve one",
    "utf-16-be": "plain words, and a naïve one",
    "utf-32-le": "plain words, and a naïve one",
    "utf-32-be": "plain words, and a naïve one",
    "cp1252": "Der Bär läuft über die Brücke und hört die schöne Musik; das kostet 5 € „heute“. " * 3,
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy. Žádný učený z nebe nespadl, říká se. " * 5,
    "iso8859_2": "Příliš žluťoučký kůň úpěl ďábelské ódy. Žádný učený z nebe nespadl, říká se. " * 5,
    "cp1251": RUSSIAN * 5,
    "cp866": RUSSIAN * 5,
    "iso8859_5": RUSSIAN * 5,
    "cp1254": "İnsanlık ailesinin bütün üyelerinde bulunan haysiyetin ve bunların eşit ve devir kabul etmez haklarının "  # noqa: RUF001
    "tanınması hususunun, hürriyetin, adaletin ve dünya barışının temeli olmasına, insan haklarının tanınmaması ve hor "  # noqa: RUF001
    "görülmesinin insanlık vicdanını isyana sevkeden vahşiliklere sebep olmuş bulunmasına göre. " * 2,  # noqa: RUF001
    "koi8_r": RUSSIAN * 5,
    "cp932": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。" * 5,
    "euc_jp": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。" * 5,
    "iso2022_jp": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。" * 5,
    "hz": "人人生而自由。 Free and equal. 在尊严和权利上一律平等。" * 5,
    "utf-7": "\ufeffnaïve 漢字",
    "gb18030": "人人生而自由。在尊严和权利上一律平等。他们赋有理性和良心。" * 5,
}


@pytest.mark.parametrize("encoding", SAMPLES)
def test_encodings(encoding: str) -> None:
    text = SAMPLES[encoding]
    assert parse(text.encode(encoding), "a.txt").text == text.lstrip("\ufeff").rstrip()


@pytest.mark.parametrize("word", ["naïve", "½ cup", "£5", "25 °C", "it\u2019s"])
def test_one_foreign_letter_does_not_make_english_foreign(word: str) -> None:
    text = f"The recipes of that time are simple enough, said the cook, and {word} is what most people wanted to read. "
    assert parse((text * 3).encode("cp1252"), "a.txt").text == (text * 3).rstrip()


def test_utf8_that_ends_within_a_character_is_still_utf8() -> None:
    assert parse("naïve 漢字".encode()[:-1], "a.txt").text == "naïve 漢\ufffd"


def test_cyrillic_among_which_stand_latin_letters_that_look_alike() -> None:
    text = RUSSIAN.translate(str.maketrans("\u0430\u0435\u043e", "aeo")) * 5
    assert parse(text.encode("cp1251"), "a.txt").text == text.rstrip()


@pytest.mark.parametrize("text", ["see~{Fig}~} and~\\cite{a}", "a ~{b} c", "~{~}"])
def test_ascii_that_resembles_hz_stays_as_it_is(text: str) -> None:
    assert parse(text.encode(), "a.tex").text == text


def test_a_few_broken_bytes_do_not_lose_the_text() -> None:
    parsed = parse("Größe ist alles, sagt man. ".encode() * 100 + b"\x81\x8d\xff", "a.txt")
    assert parsed.text.startswith("Größe ist alles")


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_pages_of_plain_text_are_what_its_form_feeds_say(text: str) -> None:
    try:
        parsed = parse(text.encode(), "a.txt")
    except DocumentError:
        return
    assert parsed.text.count("\f") == parsed.pages - 1
    pages = parsed.text.split("\f")
    assert parsed.blank_pages == tuple(number for number, page in enumerate(pages, 1) if not page.strip())


def test_plain_text_pages() -> None:
    parsed = parse(b"one\r\n\f\f three  \n", "a.txt")
    assert (parsed.text, parsed.pages, parsed.blank_pages, parsed.engine) == ("one\n\f\f three\n", 3, (2,), "utf-8")


def test_markdown_keeps_its_source() -> None:
    source = "---\ntitle: T\n---\n\n# Heading\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert parse(source.encode(), "a.md").text == source


PAGE = """<html><head><title>The title</title><style>p {}</style></head><body>
<nav><a href="/">Home</a></nav><h1>Main</h1><p>First <b>bo</b>ld &euro; &amp; caf&eacute;.<script>no()</script> Tail.
<h2>Table</h2><table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td>2</td></tr></table>
<ul><li>one</li><li>two</li></ul><pre>  x = 1\n    y</pre><!-- comment --></body></html>"""

READABLE = """# The title

# Main

First bold € & café. Tail.

## Table

A | B
1 | 2

- one
- two

  x = 1
    y"""


def test_html_reads_as_text() -> None:
    parsed = parse(PAGE.encode(), "a.html")
    assert parsed.text == READABLE
    assert parsed.engine.startswith("lxml ")
    assert parsed.pages == 1


def test_a_title_that_is_the_heading_stands_once() -> None:
    data = b"<html><head><title>Same</title></head><body><h1> Same </h1><p>Text</p></body></html>"
    assert parse(data, "a.html").text == "# Same\n\nText"


LONG = "<p>" + "Words of the content, many of them. " * 9 + "</p>"


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (f'<div class="main-menu">Home</div><ul id="breadcrumbs"><li>Top</ul>{LONG}', "Words of the content"),
        (
            f'<div role="navigation">Home</div><div class="with-sidebar navigation-open">{LONG}</div>',
            "Words of the content",
        ),
        (f"<header>Site: Home</header><main>{LONG}</main><footer>Home, imprint</footer>", "Words of the content"),
        ("<div class='menu'><p>Soup of the day: Home made</p></div>", "Soup of the day"),
        (f"<main>Home</main><div>{LONG}</div>", "Words of the content"),
    ],
)
def test_the_content_is_read_without_its_menus_but_never_lost(body: str, kept: str) -> None:
    text = parse(f"<html><body>{body}</body></html>".encode(), "a.html").text
    assert kept in text
    assert ("Home" in text) == ("Soup" in text or "<main>Home" in body)


def test_html_declares_its_encoding() -> None:
    data = '<html><head><meta charset="iso-8859-1"></head><body>café</body></html>'.encode("latin-1")
    assert parse(data, "a.html").text == "café"


def test_html_resolves_no_external_entity() -> None:
    data = b'<!DOCTYPE html [<!ENTITY e SYSTEM "file:///etc/passwd">]><html><body><p>A &e; B</p></body></html>'
    assert "root:" not in parse(data, "a.html").text


def test_deep_html_is_read_or_refused_but_never_cut() -> None:
    assert "deep" in parse(b"<html>" + b"<div>" * 1_000 + b"deep", "a.html").text
    with pytest.raises(Corrupt, match="too deep"):
        parse(b"<html><p>text</p>" + b"<div>" * 10_000 + b"deep", "a.html")


@given(
    st.binary(max_size=300),
    st.sampled_from(
        ["a.txt", "a.md", "a.html", "a.pdf", "a", "a.docx", "a.xlsx", "a.epub", "a.eml", "a.json", "a.csv", "a.rtf"]
    ),
)
def test_any_bytes_give_a_document_or_a_typed_error(data: bytes, filename: str) -> None:
    try:
        parsed = parse(data, filename)
    except DocumentError as error:
        message = str(error)
    else:
        message = filename
        parsed.text.encode()
        assert parsed.text.count("\f") == parsed.pages - 1
        assert parsed.text.strip()
    assert filename in message
