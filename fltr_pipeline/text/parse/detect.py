"""What a file is: its content decides, its name is only the label.

Belongs here: telling kinds apart, and saying so in words that a customer understands. Does not: reading any of them.
"""

from enum import StrEnum
from pathlib import PurePosixPath

from fltr_pipeline.errors import Unsupported
from fltr_pipeline.text.parse.decode import looks_like_text

READABLE = "PDF, HTML, Markdown and plain text files can be uploaded"

_HEAD = 1024
"""Bytes in which a kind shows itself; the PDF specification allows that much before `%PDF-`."""


class Kind(StrEnum):
    """What can be read; the values are `ParsedDocument.kind`."""

    PDF = "pdf"
    HTML = "html"
    MARKDOWN = "markdown"
    TEXT = "text"


_LABELS = {
    ".pdf": Kind.PDF,
    ".html": Kind.HTML,
    ".htm": Kind.HTML,
    ".xhtml": Kind.HTML,
    ".md": Kind.MARKDOWN,
    ".markdown": Kind.MARKDOWN,
    ".txt": Kind.TEXT,
    ".text": Kind.TEXT,
}
_NAMES = {Kind.PDF: "a PDF", Kind.HTML: "an HTML page", Kind.MARKDOWN: "Markdown", Kind.TEXT: "text"}
_BINARY_LABELS = {
    **dict.fromkeys((".doc", ".docx", ".odt", ".rtf"), "a word processor's document"),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "a spreadsheet"),
    **dict.fromkeys((".ppt", ".pptx", ".odp"), "a presentation"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ico"), "an image"),
    **dict.fromkeys((".mp3", ".wav", ".ogg", ".flac", ".m4a"), "an audio file"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "a video"),
    **dict.fromkeys((".zip", ".gz", ".tar", ".7z", ".rar", ".bz2", ".xz"), "an archive"),
    **dict.fromkeys((".exe", ".dll", ".so"), "a program"),
    ".epub": "an EPUB book",
    ".msg": "an Outlook message",
}
_IN_ZIP = (
    (b"word/document.xml", "a Word document (DOCX)"),
    (b"xl/workbook.xml", "an Excel workbook (XLSX)"),
    (b"ppt/presentation.xml", "a PowerPoint presentation (PPTX)"),
    (b"application/epub+zip", "an EPUB book"),
    (b"application/vnd.oasis.opendocument", "an OpenDocument file"),
)
_MAGIC = (
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\x00", "a TIFF image"),
    (0, b"MM\x00*", "a TIFF image"),
    (0, b"BM", "a BMP image"),
    (8, b"WEBP", "a WebP image"),
    (8, b"WAVE", "a WAV audio file"),
    (0, b"ID3", "an MP3 audio file"),
    (0, b"\xff\xfb", "an MP3 audio file"),
    (0, b"OggS", "an Ogg audio file"),
    (0, b"fLaC", "a FLAC audio file"),
    (4, b"ftyp", "an MP4 audio or video file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska video"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (DOC, XLS, PPT or MSG)"),
    (0, b"MZ", "a Windows program"),
    (0, b"\x7fELF", "a Linux program"),
    (0, b"\xca\xfe\xba\xbe", "a Java class or macOS program"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
)


def kind_of(data: bytes, filename: str) -> Kind:
    """The kind of `data`. Within the text family the label decides (HTML, Markdown, text); without one the content.

    Raises:
        Unsupported: not readable, or the label and the content are of different families.
    """
    suffix = PurePosixPath(filename).suffix.lower()
    label = _LABELS.get(suffix)
    labelled = _NAMES[label] if label else _BINARY_LABELS.get(suffix)
    kind, found = _content(data)
    if kind is None and label is Kind.PDF and found is None:
        return Kind.PDF  # damaged at its head: the PDF engines judge it
    if kind is None:
        also = f"is labelled as {labelled} but " if label else ""
        raise Unsupported(f"{filename}: {also}holds {found or 'binary data of an unknown kind'}; {READABLE}")
    if labelled and (label is None or (label is Kind.PDF) != (kind is Kind.PDF)):
        raise Unsupported(
            f"{filename}: mislabelled: the name says {labelled}, the content is {_NAMES[kind]}; "
            "give it the extension of what it holds and upload it again"
        )
    return label or kind


def _content(data: bytes) -> tuple[Kind | None, str | None]:
    """The readable kind, or else what the bytes are known to be."""
    if _is_pdf(data):
        return Kind.PDF, None
    head = data[:_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"%!ps"):
        return None, "a PostScript file"
    if head.startswith(b"{\\rtf"):
        return None, "an RTF document"
    if not looks_like_text(data):
        return None, _binary(data)
    if head.startswith((b"<!doctype html", b"<html")) or (head.startswith(b"<") and b"<html" in head):
        return Kind.HTML, None
    return Kind.TEXT, None


def _is_pdf(data: bytes) -> bool:
    """`%PDF-` at the head; behind other bytes only with a PDF's objects: a text may well quote those characters."""
    position = data.find(b"%PDF-", 0, _HEAD)
    if position < 0 or not data[:position].strip(b"\xef\xbb\xbf \t\r\n\x00"):
        return position >= 0
    return b"endobj" in data


def _binary(data: bytes) -> str | None:
    if data.startswith(b"PK\x03\x04"):
        return next((name for mark, name in _IN_ZIP if mark in data), "a ZIP archive")
    return next((name for offset, magic, name in _MAGIC if data[offset:].startswith(magic)), None)
