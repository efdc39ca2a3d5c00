"""A file's bytes as formats look at them to recognise their own: each look is taken once.

Belongs here: what several formats look at. Does not: what it means.
"""

import io
import zipfile
from dataclasses import dataclass
from functools import cached_property

from fltr_pipeline.text.parse.decode import looks_like_text, unicode_encoding

_HEAD = 1024
"""Bytes in which a format shows itself; the PDF specification allows that much before `%PDF-`."""

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""The container of Office before 2007, and of today's Office documents with a password."""

_MOST_MIMETYPE = 200


@dataclass(frozen=True)
class Sample:
    """The bytes of one file."""

    data: bytes

    @cached_property
    def head(self) -> str:
        """The beginning of a text in lower case, without byte order mark and blanks; empty if the bytes are no text."""
        if not looks_like_text(self.data):
            return ""
        encoding = unicode_encoding(self.data) or "latin-1"  # signs are ASCII
        text = self.data[: 4 * _HEAD].decode(encoding, errors="replace")
        return text.lstrip("\ufeff\xef\xbb\xbf \t\r\n\x00").lower()

    @cached_property
    def entries(self) -> frozenset[str]:
        """The names in a ZIP file; empty if it is none, or too damaged to tell."""
        if self._archive is None:
            return frozenset()
        return frozenset(self._archive.namelist())

    @cached_property
    def mimetype(self) -> str:
        """What an EPUB or OpenDocument file says it is, in its entry `mimetype`."""
        if self._archive is None or "mimetype" not in self.entries:
            return ""
        try:
            with self._archive.open("mimetype") as entry:
                return entry.read(_MOST_MIMETYPE).decode("ascii", errors="replace").strip()
        except Exception:  # noqa: BLE001  a damaged entry says nothing
            return ""

    def has_ole_stream(self, name: str) -> bool:
        """Whether an OLE container names such a stream in its directory."""
        return self.data.startswith(OLE) and name.encode("utf-16-le") + b"\x00\x00" in self.data

    def is_office(self, folder: str) -> bool:
        """Whether a ZIP file is an Office document with its parts under `folder`."""
        return "[Content_Types].xml" in self.entries and any(name.startswith(f"{folder}/") for name in self.entries)

    @cached_property
    def _archive(self) -> zipfile.ZipFile | None:
        if not self.data.startswith(b"PK\x03\x04"):
            return None
        try:
            return zipfile.ZipFile(io.BytesIO(self.data))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  zipfile raises nearly anything on damaged files
            return None
