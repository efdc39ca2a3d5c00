"""PDF: pypdf opens, decrypts, counts and judges; one engine reads the text and the other stands in where it fails.

Belongs here: PDF to pages of text. Does not: OCR; a scan has no text layer and is told so.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fltr_pipeline.errors import Corrupt, DocumentError, Empty, Encrypted, NoTextLayer
from fltr_pipeline.text.clean import clean
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.sample import Sample

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

Pages = list[str | None]
"""The text of each page; None where the engine failed on it."""

_HEAD = 1024
"""Bytes in which `%PDF-` stands, by the specification."""

_JOINED = re.compile("\\b(\\w++)\ufffe\\s*(\\w+)")
"""pdfium puts U+FFFE where a word was divided at the end of its line, be it a hyphenated or a compound one."""


def extract(data: bytes, filename: str, *, engine: str = "pypdfium2") -> Extraction:
    """The text of each page, read by `engine` (`pypdfium2` or `pypdf`); pages it fails on by the other one.

    Raises:
        Encrypted: needs a password.
        Corrupt: neither engine can read it.
        Empty: has no pages.
        NoTextLayer: has no text on any page.
    """
    damage = _judge(data, filename)
    engines = sorted(_ENGINES, key=lambda name: name != engine)
    pages: Pages = []
    used: list[str] = []
    for name in engines:
        found = _attempt(_ENGINES[name], data)
        merged = _merged(pages, found)
        if merged != pages:
            pages = merged
            used.append(_versioned(name))
        if _has_text(pages) and None not in pages:
            break
    if not pages or all(page is None for page in pages):
        reason = f" ({type(damage).__name__}: {damage})" if damage else ""
        raise Corrupt(f"{filename}: the PDF is damaged beyond reading{reason}; save it again and upload it anew")
    texts = _rejoined([page or "" for page in pages])
    if not _has_text(texts):
        raise NoTextLayer(
            f"{filename}: none of its {len(pages)} pages has text, it is probably a scan; "
            "upload a version with a text layer (OCR)"
        )
    return Extraction(texts, " + ".join(used))


def _judge(data: bytes, filename: str) -> Exception | None:
    """What pypdf finds wrong; on malformed files it raises nearly any exception there is."""
    from pypdf import PasswordType, PdfReader  # noqa: PLC0415

    try:
        reader = PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise Encrypted(f"{filename}: needs a password; upload it without one")  # noqa: TRY301
        if not len(reader.pages):
            raise Empty(f"{filename}: the PDF has no pages")  # noqa: TRY301
    except (DocumentError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  any of pypdf's failures means the same: damaged
        return error
    return None


def _attempt(read: Callable[[bytes], Pages], data: bytes) -> Pages:
    try:
        return read(data)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  the other engine may read it; `Corrupt` is raised when none does
        return []


def _read_pypdfium2(data: bytes) -> Pages:
    import pypdfium2  # noqa: PLC0415

    document = pypdfium2.PdfDocument(data)
    try:
        return [_page_pypdfium2(document, index) for index in range(len(document))]
    finally:
        document.close()


def _page_pypdfium2(document: "PdfDocument", index: int) -> str | None:
    import pypdfium2  # noqa: PLC0415

    try:
        page = document[index]
    except pypdfium2.PdfiumError:
        return None
    text = page.get_textpage()
    try:
        return str(text.get_text_range())
    finally:
        text.close()
        page.close()


def _read_pypdf(data: bytes) -> Pages:
    from pypdf import PdfReader  # noqa: PLC0415

    reader = PdfReader(io.BytesIO(data), strict=False)
    if reader.is_encrypted:
        reader.decrypt("")
    pages: Pages = []
    for page in reader.pages:
        try:
            pages.append(page.extract_text())
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  one bad page does not take the others with it
            pages.append(None)
    return pages


_ENGINES: dict[str, Callable[[bytes], Pages]] = {"pypdfium2": _read_pypdfium2, "pypdf": _read_pypdf}


def _versioned(engine: str) -> str:
    from importlib.metadata import version  # noqa: PLC0415

    return f"{engine} {version(engine)}"


def _merged(first: Pages, second: Pages) -> Pages:
    """`first`, with what `second` knows where `first` has failed or, all in all, has nothing."""
    if not _has_text(first) and _has_text(second):
        return second
    if len(first) != len(second):
        return first or second
    return [other if page is None else page for page, other in zip(first, second, strict=True)]


def _has_text(pages: Sequence[str | None]) -> bool:
    return any(page and clean(page).strip() for page in pages)


def _rejoined(pages: Sequence[str]) -> list[str]:
    """Words that were divided at the end of a line, as the document writes them elsewhere."""
    whole = "\n".join(pages)

    def join(match: re.Match[str]) -> str:
        left, right = match[1], match[2]
        compound = f"{left}-{right}"
        hyphenated = compound in whole or (left + right not in whole and not (left + right).islower())
        return compound if hyphenated else left + right

    return [_JOINED.sub(join, page).replace("\ufffe", "-") for page in pages] if "\ufffe" in whole else list(pages)


def _recognises(sample: Sample) -> bool:
    """`%PDF-` at the head; behind other bytes only with a PDF's objects: a text may well quote those characters."""
    data = sample.data
    position = data.find(b"%PDF-", 0, _HEAD)
    if position < 0 or not data[:position].strip(b"\xef\xbb\xbf \t\r\n\x00"):
        return position >= 0
    return b"endobj" in data


FORMAT = Format(kind="pdf", title="PDF", suffixes=(".pdf",), extract=extract, recognises=_recognises)
