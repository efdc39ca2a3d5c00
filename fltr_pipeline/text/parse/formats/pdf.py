"""PDF: pypdf opens, decrypts, counts and judges; one engine reads the text and the other stands in where it fails.

Belongs here: which engine's page is believed, and that OCR reads the pages that have no text. Does not: the engines
(`pdf_engines`, `ocr`).
"""

import re
from collections.abc import Collection, Sequence

from fltr_pipeline.errors import Corrupt, Empty, Encrypted, NoTextLayer
from fltr_pipeline.text.clean import clean
from fltr_pipeline.text.parse import page_images
from fltr_pipeline.text.parse.extraction import Extraction, Format, check_pages
from fltr_pipeline.text.parse.garbage import badness, is_doubtful
from fltr_pipeline.text.parse.ocr import Recogniser
from fltr_pipeline.text.parse.pdf_engines import Engine, Pages, Pypdf, Pypdfium2, versioned
from fltr_pipeline.text.parse.running_heads import without_running_heads
from fltr_pipeline.text.parse.sample import Sample

_HEAD = 1024
"""Bytes in which `%PDF-` stands, by the specification."""

_DIVISION = re.compile("([\ufffe\u2010-])(?:(?<=\ufffe)\\s*|(?<!\ufffe)\r?\n)(?=(\\w+))")
"""Within a word at the end of a line: pdfium puts U+FFFE there, into hyphenated and compound words alike."""

_LEFT = re.compile(r"\w+\Z")
_LONGEST_WORD = 100

_MARKS = ("\ufffe", "-\n", "-\r", "\u2010\n", "\u2010\r")
"""Without one of them, no word is divided."""

_WORD = re.compile(r"\w+(?:-\w+)*")


def extract(
    data: bytes, filename: str, *, engine: str = "pypdfium2", recogniser: Recogniser | None = None
) -> Extraction:
    """The text of each page, read by `engine` (`pypdfium2` or `pypdf`); doubtful pages also by the other one; those
    without any by `recogniser`, from their pictures.

    Raises:
        Encrypted: needs a password.
        Corrupt: neither engine can read it.
        Empty: has no pages.
        TooLarge: has more pages than any document, or than may be recognised.
        NoTextLayer: has no text on any page.
    """
    pypdf, damage = _judged(data, filename)
    pypdfium2 = Pypdfium2(data)
    engines: dict[str, Engine] = {"pypdfium2": pypdfium2} | ({"pypdf": pypdf} if pypdf else {})
    pages: Pages = []
    used: list[str] = []
    for name in sorted(engines, key=lambda name: name != engine):
        doubtful = _doubtful(pages)
        if pages and not doubtful:
            break
        better = _improved(pages, _attempt(engines[name], doubtful if pages else None))
        if better != pages:
            pages = better
            used.append(versioned(name))
    if recogniser and pages and (read := _recognised(data, pages, recogniser, filename)):
        pages = [read.get(index, page) for index, page in enumerate(pages)]
        used.append(recogniser.engine)
    if not pages or all(page is None for page in pages):
        if pypdfium2.needs_password:
            raise _encrypted(filename)
        reason = f" ({type(damage).__name__}: {damage})" if damage else ""
        raise Corrupt(f"{filename}: the PDF is damaged beyond reading{reason}; save it again and upload it anew")
    texts = [text.replace("\r\n", "\n") for text in _rejoined(pages)]
    if not any(clean(text).strip() for text in texts):
        found = "it is probably a scan" if recogniser is None else "and none was recognised in their pictures"
        raise NoTextLayer(
            f"{filename}: none of its {len(pages)} pages has text, {found}; upload a version with a text layer (OCR)"
        )
    recognised = recogniser.recognised if recogniser else ()
    return Extraction(without_running_heads(texts), " + ".join(used), tuple(recognised))


def _recognised(data: bytes, pages: Pages, recogniser: Recogniser, filename: str) -> dict[int, str]:
    """The text of the pages that have none, by index, where OCR finds any."""
    blank = [index for index, page in enumerate(pages) if not clean(page or "").strip()]
    pictures = page_images.of_pdf(data, blank, lambda shown: recogniser.check(shown, filename)) if blank else ()
    texts = {index: recogniser.text(picture, index + 1) for index, picture in pictures}
    return {index: text for index, text in texts.items() if text}


def _judged(data: bytes, filename: str) -> tuple[Pypdf | None, Exception | None]:
    """pypdf with the file opened, or what it finds wrong with it."""
    try:
        pypdf = Pypdf(data)
        count = None if pypdf.needs_password else pypdf.count()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  any of pypdf's failures means the same: damaged
        return None, error
    if count is None:
        raise _encrypted(filename)
    if count == 0:
        raise Empty(f"{filename}: the PDF has no pages")
    check_pages(count, filename)  # before they are read
    return pypdf, None


def _encrypted(filename: str) -> Encrypted:
    return Encrypted(f"{filename}: needs a password; upload it without one")


def _doubtful(pages: Pages) -> Sequence[int]:
    """The pages to ask the other engine for; all of them, if there is no text at all."""
    if not any(page and page.strip() for page in pages):
        return range(len(pages))
    return [index for index, page in enumerate(pages) if page is None or is_doubtful(page)]


def _attempt(engine: Engine, wanted: Collection[int] | None) -> Pages:
    try:
        return engine(wanted)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  the other engine may read it; `Corrupt` is raised when none does
        return []


def _improved(pages: Pages, others: Pages) -> Pages:
    """`pages`, with those of `others` that read better; page boundaries are those of `pages`, if it has any text."""
    if len(pages) != len(others):
        return pages if any(pages) or not others else others
    return [other if _reads_better(other, page) else page for page, other in zip(pages, others, strict=True)]


def _reads_better(other: str | None, page: str | None) -> bool:
    if page is None or other is None:
        return other is not None
    if not other.strip() or not page.strip():
        return bool(other.strip())
    return badness(other) < badness(page)


def _rejoined(pages: Sequence[str | None]) -> list[str]:
    """Words that were divided at the end of a line, as the document writes them elsewhere."""
    texts = [page or "" for page in pages]
    if not any(mark in text for text in texts for mark in _MARKS):
        return texts
    words = set[str]().union(*map(_WORD.findall, texts))

    def join(match: re.Match[str]) -> str:
        mark, right = match.groups()
        end = match.start()
        left = _LEFT.search(match.string, max(0, end - _LONGEST_WORD), end)
        if left is None:
            return match[0]
        joined, compound = left[0] + right, f"{left[0]}-{right}"
        if mark != "\ufffe":
            return "" if joined in words and compound not in words else match[0]
        hyphenated = compound in words or (joined not in words and not joined.islower())
        return "-" if hyphenated else ""

    return [_DIVISION.sub(join, text).replace("\ufffe", "-") for text in texts]


def _recognises(sample: Sample) -> bool:
    """`%PDF-` at the head; behind other bytes only with a PDF's objects: a text may well quote those characters."""
    data = sample.data
    position = data.find(b"%PDF-", 0, _HEAD)
    if position < 0 or not data[:position].strip(b"\xef\xbb\xbf \t\r\n\x00"):
        return position >= 0
    return b"endobj" in data


FORMAT = Format(kind="pdf", title="PDF", suffixes=(".pdf",), extract=extract, recognises=_recognises)
