"""ZIP files whose parts are XML, as Office, OpenDocument and EPUB files are: read in memory, under a limit.

Belongs here: getting at a part, and parsing it safely. Does not: what a part means.
"""

import io
import posixpath
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote

from fltr_pipeline.errors import Corrupt, DocumentError, Encrypted, TooLarge

if TYPE_CHECKING:
    from lxml.etree import _Element

_MOST_BYTES = 200 << 20
"""What may be unpacked of one file. Real documents have a tenth of it: pictures are never unpacked."""

_STEP = 1 << 20


class Archive:
    """The parts of one file; its name is for messages."""

    def __init__(self, data: bytes, filename: str) -> None:
        """Read the directory.

        Raises:
            Corrupt: it can't be read.
        """
        self._filename = filename
        self._left = _MOST_BYTES
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  zipfile raises nearly anything on damaged files
            raise self._corrupt(f"is not a whole ZIP file ({error})") from None
        self.names = frozenset(self._zip.namelist())

    def read(self, name: str) -> bytes:
        """A part's bytes.

        Raises:
            Corrupt: there is no such part, or it is damaged.
            Encrypted: it has a password.
            TooLarge: with it, more was unpacked than one file may have.
        """
        if name not in self.names:
            raise self._corrupt(f"its part {name} is missing")
        try:
            return self._unpacked(name)
        except (MemoryError, DocumentError):
            raise
        except Exception as error:  # noqa: BLE001
            raise self._corrupt(f"its part {name} can't be unpacked ({type(error).__name__}: {error})") from None

    def xml(self, name: str) -> "_Element":
        """A part as XML; entities are not resolved, nothing outside is fetched.

        Raises:
            Corrupt: besides what `read` raises, it is no XML, declares a document type, or is nested too deep.
        """
        from lxml import etree  # noqa: PLC0415

        parser = etree.XMLParser(
            resolve_entities=False, load_dtd=False, no_network=True, remove_comments=True, remove_pis=True
        )
        data = self.read(name)
        try:
            root = etree.fromstring(data, parser)
        except etree.XMLSyntaxError as error:
            if error.code == etree.ErrorTypes.ERR_NO_MEMORY:
                raise MemoryError from None
            raise self._corrupt(f"its part {name} is damaged ({error.msg})") from None
        if root.getroottree().docinfo.internalDTD is not None:
            raise self._corrupt(f"its part {name} declares entities, which no office program writes")
        return root

    def related(self, part: str) -> Mapping[str, tuple[str, str]]:
        """What an Office part refers to: id → (the last word of the relation's type, name of the part)."""
        folder, name = posixpath.split(part)
        relations = posixpath.join(folder, "_rels", f"{name}.rels")
        if relations not in self.names:
            return {}
        return {
            relation.get("Id", ""): (relation.get("Type", "").rpartition("/")[2], joined(folder, target))
            for relation in self.xml(relations)
            if relation.get("TargetMode") != "External" and (target := relation.get("Target"))
        }

    def main_part(self, otherwise: str) -> str:
        """The part of an Office file that its root names as the document."""
        parts = [part for kind, part in self.related("").values() if kind == "officeDocument"]
        return parts[0] if parts and parts[0] in self.names else otherwise

    def _unpacked(self, name: str) -> bytes:
        info = self._zip.getinfo(name)
        if info.flag_bits & 1:
            raise Encrypted(f"{self._filename}: needs a password; upload it without one")
        parts = []
        with self._zip.open(info) as part:
            while step := part.read(_STEP):
                self._left -= len(step)
                if self._left < 0:
                    raise TooLarge(
                        f"{self._filename}: unpacks to more than {_MOST_BYTES >> 20} MB of text and markup; split it"
                    )
                parts.append(step)
        return b"".join(parts)

    def _corrupt(self, why: str) -> Corrupt:
        return Corrupt(f"{self._filename}: {why}; save it again and upload it anew")


def joined(folder: str, reference: str) -> str:
    """The name of the part that a part in `folder` refers to."""
    path = unquote(reference.partition("#")[0])
    return path.lstrip("/") if path.startswith("/") else posixpath.normpath(posixpath.join(folder, path))


def local(name: object) -> str:
    """A tag or attribute without its namespace, of which Office formats have two each; empty for entity references."""
    return name.rpartition("}")[2] if isinstance(name, str) else ""


def attribute(element: "_Element", name: str) -> str | None:
    """An attribute's value, whatever its namespace."""
    return next((str(value) for key, value in element.attrib.items() if local(key) == name), None)
