"""The two engines that read a PDF's text, page by page, in one shape.

Belongs here: pypdf and pypdfium2. Does not: which of them is believed (`formats/pdf`).
"""

import io
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pypdf import PageObject
    from pypdfium2 import PdfDocument, PdfPage

Pages = list[str | None]
"""The text of each page; None where the engine failed on it, found illegible text only, or was not asked."""

_MOST_CONTENT = 4 << 20
"""Bytes of drawing above which pypdf is not asked for a page: it takes minutes for a map that has no text."""


class Engine(Protocol):
    """Reads a file's pages."""

    def __call__(self, wanted: Collection[int] | None = None) -> Pages:
        """As many as the file has; only those with a `wanted` index are read, all if that is None."""
        ...


class Pypdfium2:
    """Reads fast, and well."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.needs_password = False
        """Whether opening it failed for want of a password."""

    def __call__(self, wanted: Collection[int] | None = None) -> Pages:
        """Raises `PdfiumError` if it can't open the file."""
        import pypdfium2  # noqa: PLC0415

        try:
            document = pypdfium2.PdfDocument(self._data)
        except pypdfium2.PdfiumError as error:
            self.needs_password = getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD
            raise
        try:
            indexes = range(len(document))
            return [_pdfium_page(document, i) if wanted is None or i in wanted else None for i in indexes]
        finally:
            document.close()


class Pypdf:
    """Opens what others don't, and takes its time."""

    def __init__(self, data: bytes) -> None:
        """Raises nearly any exception there is, on malformed files."""
        from pypdf import PasswordType, PdfReader  # noqa: PLC0415

        self._reader: PdfReader = PdfReader(io.BytesIO(data), strict=False)
        self.needs_password = self._reader.is_encrypted and self._reader.decrypt("") == PasswordType.NOT_DECRYPTED

    def count(self) -> int:
        """How many pages the file says that it has; counted, if it says none."""
        tree = self._reader.root_object["/Pages"]
        told = tree.get("/Count") if isinstance(tree, dict) else None
        return int(told) if isinstance(told, int) and told > 0 else len(self._reader.pages)

    def __call__(self, wanted: Collection[int] | None = None) -> Pages:
        """A page on which it fails is None."""
        pages = enumerate(self._reader.pages)
        return [_pypdf_page(page) if wanted is None or i in wanted else None for i, page in pages]


def _pdfium_page(document: "PdfDocument", index: int) -> str | None:
    import pypdfium2  # noqa: PLC0415

    try:
        page = document[index]
    except pypdfium2.PdfiumError:
        return None
    text = page.get_textpage()
    try:
        found = str(text.get_text_range())
        return found if found.strip() or not _draws_text(page) else None
    finally:
        text.close()
        page.close()


def _draws_text(page: "PdfPage") -> bool:
    """Whether something on the page is text, legible or not."""
    import pypdfium2.raw  # noqa: PLC0415

    return next(iter(page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_TEXT])), None) is not None


def _pypdf_page(page: "PageObject") -> str | None:
    try:
        contents = page.get_contents()
        if contents is not None and len(contents.get_data()) > _MOST_CONTENT:
            return None
        return page.extract_text()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  one bad page does not take the others with it
        return None


@cache
def versioned(engine: str) -> str:
    """Its name with its version."""
    from importlib.metadata import version  # noqa: PLC0415

    return f"{engine} {version(engine)}"
