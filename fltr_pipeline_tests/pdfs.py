"""Small PDF files, made for the tests: text pages, blank pages, encrypted files.

Belongs here: writing valid PDFs with pypdf. Does not: the damage that a test does to them.
"""

import io
from collections.abc import Sequence

from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject


def pdf(pages: Sequence[str], *, password: str | None = None, owner: str | None = None) -> bytes:
    """A PDF with one line of Helvetica per line of text; a page without text has no content stream."""
    writer = PdfWriter()
    font = writer._add_object(
        DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            }
        )
    )
    for text in pages:
        page = writer.add_blank_page(width=595, height=842)
        if text:
            fonts = DictionaryObject({NameObject("/F1"): font})
            page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
            stream = DecodedStreamObject()
            stream.set_data(_content(text))
            page[NameObject("/Contents")] = writer._add_object(stream)
    if password is not None:
        writer.encrypt(password, owner_password=owner or "owner", algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def _content(text: str) -> bytes:
    shown = [line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") for line in text.split("\n")]
    lines = "\n".join(f"({line}) Tj T*" for line in shown)
    return f"BT /F1 11 Tf 14 TL 40 800 Td\n{lines}\nET".encode("latin-1")
