"""EPUB books: a page per chapter, in the order of reading.

Belongs here: finding the chapters. Does not: reading one (`html`); the table of contents, which repeats headings.
"""

import posixpath
from collections.abc import Sequence

from fltr_pipeline.errors import Corrupt, Encrypted
from fltr_pipeline.text.parse.archive import Archive, joined, local
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.formats import html

_MARKUP = frozenset({"application/xhtml+xml", "text/html", "application/x-dtbook+xml"})


def extract(data: bytes, filename: str) -> Extraction:
    """The chapters' text; left out are those without text (covers), and those that the book names but does not hold.

    Raises:
        Encrypted: a chapter is under copy protection.
        Corrupt: there is no table of what to read, or nothing of it is there.
    """
    from lxml import etree  # noqa: PLC0415

    archive = Archive(data, filename)
    chapters = [name for name in _chapters(archive, filename) if name in archive.names]
    if not chapters:
        raise Corrupt(f"{filename}: the book holds none of its chapters; save it again and upload it anew")
    if set(chapters) & _protected(archive):
        raise Encrypted(f"{filename}: is under copy protection; upload a version without")
    texts = [text for name in chapters if (text := html.text_of(archive.read(name), filename))]
    return Extraction(texts or [""], f"lxml {etree.__version__}")


def _chapters(archive: Archive, filename: str) -> Sequence[str]:
    container = archive.xml("META-INF/container.xml")
    package = next((e.get("full-path") for e in container.iter() if local(e.tag) == "rootfile"), None)
    if package is None:
        raise Corrupt(f"{filename}: the book does not say where its contents are; save it again and upload it anew")
    root, folder = archive.xml(package), posixpath.dirname(package)
    items = {
        e.get("id"): joined(folder, e.get("href", ""))
        for e in root.iter()
        if local(e.tag) == "item" and e.get("media-type") in _MARKUP and "nav" not in e.get("properties", "").split()
    }
    spine = [e.get("idref") for e in root.iter() if local(e.tag) == "itemref"]
    return list(dict.fromkeys(items[reference] for reference in spine if reference in items))


def _protected(archive: Archive) -> set[str]:
    """What is encrypted; fonts often are, in books that anybody may read."""
    part = "META-INF/encryption.xml"
    if part not in archive.names:
        return set()
    return {joined("", e.get("URI", "")) for e in archive.xml(part).iter() if local(e.tag) == "CipherReference"}


FORMAT = Format(
    kind="epub",
    title="EPUB books",
    suffixes=(".epub",),
    extract=extract,
    recognises=lambda sample: sample.mimetype == "application/epub+zip" or "META-INF/container.xml" in sample.entries,
)
