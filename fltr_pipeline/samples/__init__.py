"""The documents that `fltr-pipeline demo` uploads, and what is to come of them.

Belongs here: real files with their licences, and the answers they must give. Does not: uploading them.
`README.md` says where each comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from fltr_pipeline.errors import Corrupt, Encrypted

SOURCES = ("debian", "click", "starlette")
"""A folder for each place that the files come from."""

_DOCUMENTS = frozenset({".pdf", ".html", ".md", ".txt"})
_LICENCES = ("LICENSE", "copyright")


@dataclass(frozen=True, slots=True)
class Query:
    """A question, and the document that must be among its first `within` hits."""

    text: str
    filename: str
    within: int = 5


EXPECTED_FAILURES: Mapping[str, str] = MappingProxyType(
    {"encrypted.pdf": Encrypted.code, "corrupt.pdf": Corrupt.code},
)
"""The error code of each document that can't be read; all others become `ready`."""

QUERIES = (
    Query("What files go into the debian directory of a source package?", "debmake-doc.en.pdf"),
    Query("How is the President of the United States elected?", "us-constitution.txt"),
    Query("How do I add CORS headers to responses?", "middleware.md"),
)
"""Questions in other words than the documents', one for each kind of source."""


def folder() -> Path:
    """Where the samples are, in a checkout as in an installed package."""
    return Path(str(files(__name__)))


def sample_files() -> list[tuple[str, Path]]:
    """Each sample's filename, all different, and where it is; licences are not among them."""
    paths = (path for source in SOURCES for path in sorted((folder() / source).iterdir()))
    return [(path.name, path) for path in paths if path.suffix in _DOCUMENTS and not path.name.startswith(_LICENCES)]
