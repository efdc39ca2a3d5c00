"""What every format hands back, and the shape of the function that does it.

Belongs here: the seam between `parse` and the formats. Does not: anything about one format.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Extraction:
    """The raw text of each page, not yet cleaned."""

    pages: Sequence[str]
    engine: str
    """What read it, with its version."""


class Extractor(Protocol):
    """Reads one format."""

    def __call__(self, data: bytes, filename: str) -> Extraction:
        """The pages of `data`; `filename` is for messages only.

        Raises:
            DocumentError: the data can't be read, and why.
        """
        ...
