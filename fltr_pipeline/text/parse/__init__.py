"""A file's bytes to a document's text, whatever its format.

Belongs here: the one entry point and what all formats share. Does not: the formats (one module each, an `Extractor`),
processes and limits (`pool`).
"""

from functools import partial

from fltr_pipeline.errors import Corrupt, Empty
from fltr_pipeline.models import PAGE_BREAK, ParsedDocument
from fltr_pipeline.text.clean import clean
from fltr_pipeline.text.parse.detect import format_of
from fltr_pipeline.text.parse.extraction import Extraction, Extractor, Format, check_pages
from fltr_pipeline.text.parse.formats import image, pdf
from fltr_pipeline.text.parse.ocr import Recogniser

PARSER_VERSION = "3"
"""Part of the extractor's fingerprint: raise it when the same file gives another text."""


def parse(
    data: bytes, filename: str, *, pdf_engine: str = "pypdfium2", recogniser: Recogniser | None = None
) -> ParsedDocument:
    """The text of a file, cleaned, its pages separated by exactly `pages - 1` form feeds.

    Args:
        data: the file's bytes.
        filename: its name; messages say it, and its extension counts where the content shows no format.
        pdf_engine: `pypdfium2` or `pypdf`, what reads a PDF's text first.
        recogniser: reads images, and the pages that have no text; this document's own. None: OCR is off.

    Raises:
        DocumentError: Empty, Unsupported, Encrypted, Corrupt, TooLarge or NoTextLayer.
    """
    if not data.strip():
        raise Empty(f"{filename}: the file is empty")
    form = format_of(data, filename, ocr=recogniser is not None)
    extract = _extractor(form, pdf_engine, recogniser)
    try:
        extraction = extract(data, filename)
    except RecursionError:
        raise Corrupt(f"{filename}: is nested too deep to be read") from None
    return _document(extraction, form.kind, filename)


def _extractor(form: Format, pdf_engine: str, recogniser: Recogniser | None) -> Extractor:
    if form is pdf.FORMAT:
        return partial(pdf.extract, engine=pdf_engine, recogniser=recogniser)
    return partial(image.extract, recogniser=recogniser) if form is image.FORMAT else form.extract


def _document(extraction: Extraction, kind: str, filename: str) -> ParsedDocument:
    check_pages(len(extraction.pages), filename)
    pages = [clean(page.replace(PAGE_BREAK, "\n")) for page in extraction.pages]
    blank = tuple(number for number, page in enumerate(pages, start=1) if not page.strip())
    if len(blank) == len(pages):
        raise Empty(f"{filename}: there is no text in the file")
    recognised = tuple(extraction.recognised)
    return ParsedDocument(PAGE_BREAK.join(pages), len(pages), kind, extraction.engine, blank, recognised)
