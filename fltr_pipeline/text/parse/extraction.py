"""What a format is: how it is recognised, what it is called, and the shape of the function that reads it.

Belongs here: the seam between `parse` and the formats, and what bounds all of them. Does not: anything about one
format.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fltr_pipeline.errors import TooLarge
from fltr_pipeline.models import Recognition
from fltr_pipeline.text.parse.sample import Sample

_MOST_PAGES = 100_000
"""Each page with text is a chunk at least, however little it says: a few megabytes of form feeds would be millions."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """The raw text of each page, not yet cleaned; a page without text is there, as an empty one."""

    pages: Sequence[str]
    engine: str
    """What read it, with its version."""
    recognised: Sequence[Recognition] = ()
    """The pages whose text was read from their pictures."""


class Extractor(Protocol):
    """Reads one format."""

    def __call__(self, data: bytes, filename: str) -> Extraction:
        """The pages of `data`; `filename` is for messages only.

        Raises:
            DocumentError: the data can't be read, and why.
        """
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """A format, as its module in `formats` declares it under the name `FORMAT`."""

    kind: str
    """Its name in a document's metadata: `pdf`, `docx`."""
    title: str
    """What a customer calls it, in the plural: `Word documents (DOCX)`."""
    suffixes: tuple[str, ...]
    extract: Extractor
    recognises: Callable[[Sample], bool] | None = None
    """Whether the bytes show that they are of this format. None: nothing shows it, only its name tells (Markdown)."""
    is_text: bool = False
    """Whether text that shows no sign of any format is of this one where its name says so."""


def check_pages(pages: int, filename: str) -> None:
    """Refuse a document with that many pages.

    Raises:
        TooLarge: they are more than any document may have.
    """
    if pages > _MOST_PAGES:
        raise TooLarge(f"{filename}: has {pages:,} pages, the most is {_MOST_PAGES:,}; split the file")
