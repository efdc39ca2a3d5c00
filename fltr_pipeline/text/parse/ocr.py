"""Reading text from pictures of pages (OCR): one page at a time, as many as a document may have.

Belongs here: what a document may take, and the engine's lines as a page's text. Does not: the engine (`rapid_ocr`);
making pictures of pages (`page_images`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fltr_pipeline.errors import TooLarge
from fltr_pipeline.models import Recognition
from fltr_pipeline.text.parse.pdf_engines import versioned
from fltr_pipeline.text.parse.reading_order import as_text

if TYPE_CHECKING:
    from fltr_pipeline.text.parse.page_images import Picture

OCR_VERSION = "1"
"""Part of the extractor's fingerprint where OCR is on: raise it when the same picture gives another text."""

LIBRARIES = ("rapidocr", "onnxruntime", "opencv-python-headless", "pillow")
"""What the extra `ocr` brings that the text depends on."""

_CONTRAST = 32
"""What differs by less from most of the page, of 255, is paper."""

_MARGIN = 60
"""Pixels of paper left around what is on it: engines overlook a few words on a large empty page."""


@dataclass
class Recogniser:
    """Reads the pictures of one document."""

    most_pages: int
    on_page: Callable[[], None] = lambda: None
    """Called before each page is looked at: the document is being worked on."""
    recognised: list[Recognition] = field(default_factory=list)
    """The pages on which text was found, so far."""

    @property
    def engine(self) -> str:
        """Its name with its version."""
        return versioned("rapidocr")

    def check(self, pages: int, filename: str) -> None:
        """Refuse a document with that many pages to read, before the first one costs its seconds.

        Raises:
            TooLarge: they are more than a document may have.
        """
        if pages > self.most_pages:
            raise TooLarge(
                f"{filename}: has {pages:,} pages without text, the most is {self.most_pages:,} (FLTR_OCR_MAX_PAGES); "
                "split the file"
            )

    def text(self, picture: "Picture", page: int) -> str:
        """What page number `page` says, in reading order; empty if no text is found on it."""
        self.on_page()
        if (printed := _printed(picture)) is None:
            return ""
        from fltr_pipeline.text.parse.rapid_ocr import lines_on  # noqa: PLC0415  the extra `ocr`, seconds to import

        lines = lines_on(printed)
        if not lines:
            return ""
        characters = sum(len(line.text) for line in lines)
        confidence = sum(len(line.text) * line.confidence for line in lines) / characters
        self.recognised.append(Recognition(page, round(confidence, 3)))
        return as_text(lines)


def _printed(picture: "Picture") -> "Picture | None":
    """The part of the page that is not empty."""
    import numpy as np  # noqa: PLC0415

    green = picture[:, :, 1]
    ink = np.abs(green.astype(np.int16) - int(np.median(green))) > _CONTRAST
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not rows.size:
        return None
    top, left = max(0, rows[0] - _MARGIN), max(0, columns[0] - _MARGIN)
    return np.ascontiguousarray(picture[top : rows[-1] + _MARGIN, left : columns[-1] + _MARGIN])
