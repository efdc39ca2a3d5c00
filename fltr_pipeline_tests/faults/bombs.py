"""Files made to exhaust or mislead a parser, each small enough to be uploaded.

Belongs here: making them. Does not: what should become of them (`test_bombs.py`).
"""

import io
import zlib
from collections.abc import Callable, Mapping

from pypdf import PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject, StreamObject

from fltr_pipeline_tests.office import archive, cell, docx, paragraph, pptx, shape, xlsx


def _pdf(change: Callable[[PdfWriter], None]) -> bytes:
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    change(writer)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def _tree(writer: PdfWriter) -> DictionaryObject:
    tree = writer.root_object["/Pages"]
    assert isinstance(tree, DictionaryObject)
    return tree


def huge_page_tree() -> bytes:
    """A tree that says it has a thousand million pages."""
    data = _pdf(lambda writer: None)
    return data.replace(b"/Count 1", b"/Count 1000000000")


def circular_page_tree() -> bytes:
    """A page tree that is its own kid."""

    def change(writer: PdfWriter) -> None:
        tree = _tree(writer)
        assert tree.indirect_reference
        tree[NameObject("/Kids")] = ArrayObject([tree.indirect_reference] * 9)
        tree[NameObject("/Count")] = NumberObject(9)

    return _pdf(change)


def decompression_bomb() -> bytes:
    """A page of which the content unpacks to a gigabyte, packed twice."""

    def change(writer: PdfWriter) -> None:
        once = zlib.compressobj(1)
        packed = b"".join(once.compress(b" " * (16 << 20)) for _ in range(64)) + once.flush()
        stream = StreamObject()
        stream._data = zlib.compress(packed, 9)
        stream[NameObject("/Filter")] = ArrayObject([NameObject("/FlateDecode")] * 2)
        writer.pages[0][NameObject("/Contents")] = writer._add_object(stream)

    return _pdf(change)


def a_million_objects() -> bytes:
    """A PDF of nothing but objects."""
    objects = b"".join(b"%d 0 obj<</A %d 0 R>>endobj\n" % (n, n + 1) for n in range(10, 1_000_000))
    return b"%PDF-1.7\n" + objects + b"1 0 obj<</Type/Catalog/Pages 10 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"


def laughs() -> str:
    """A thousand million laughs, as a document type."""
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    return f'<!DOCTYPE x [<!ENTITY e0 "ha">{entities}]>'


BOMBS: Mapping[str, Callable[[], bytes]] = {
    "zip.docx": lambda: docx(paragraph(" " * (210 << 20))),
    "laughs.docx": lambda: archive({"word/document.xml": laughs() + "<x><t>&e9;</t></x>"}),
    "deep.docx": lambda: docx("<w:p>" * 1_000_000),
    "sparse.xlsx": lambda: xlsx(
        {"S": f'<row r="1">{cell("A1", "a")}</row><row r="1048576">{cell("XFD1048576", "b")}</row>'}
    ),
    "zip.xlsx": lambda: xlsx({"S": f'<row r="1">{cell("A1", " " * (400 << 20))}</row>'}),
    "repeated.epub": lambda: archive(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container><rootfile full-path="a.opf"/></container>',
            "a.opf": '<package><manifest><item id="c" href="c.xhtml" media-type="text/html"/></manifest><spine>'
            + '<itemref idref="c"/>' * 10_000
            + "</spine></package>",
            "c.xhtml": "<p>" + "words " * 200_000,
        }
    ),
    "repeated.pptx": lambda: pptx([shape("words " * 100_000)] * 40),
    "deep.html": lambda: b"<html>" + b"<div>" * 1_000_000,
    "deep.json": lambda: b"[" * 5_000_000 + b"]" * 5_000_000,
    "deep.rtf": lambda: b"{\\rtf1 " + b"{" * 500_000,
    "digits.json": lambda: b"[" + b"9" * 3_000_000 + b"]",
    "wide.csv": lambda: b"," * 5_000_000,
    "parts.eml": lambda: (
        b"From: a\nTo: b\nSubject: c\nContent-Type: multipart/mixed; boundary=B\n\n" + b"--B\n\nwords\n" * 50_000
    ),
    "deep.eml": lambda: b"From: a\nTo: b\nSubject: c\nContent-Type: message/rfc822\n\n" * 100_000,
    "huge_page_tree.pdf": huge_page_tree,
    "circular_page_tree.pdf": circular_page_tree,
    "decompression_bomb.pdf": decompression_bomb,
    "a_million_objects.pdf": a_million_objects,
}
