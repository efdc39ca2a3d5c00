"""OpenDocument texts and presentations: headings, lists, tables and notes; a presentation has a page per slide.

Belongs here: ODT and ODP to text. Does not: spreadsheets (`spreadsheet`); tracked changes, comments, repeated headers.
"""

from typing import TYPE_CHECKING

from fltr_pipeline.errors import Encrypted
from fltr_pipeline.text.parse.archive import Archive, attribute, local
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.lines import Lines
from fltr_pipeline.text.parse.sample import Sample

if TYPE_CHECKING:
    from lxml.etree import _Element

_MIMETYPES = tuple(f"application/vnd.oasis.opendocument.{kind}" for kind in ("text", "presentation", "graphics"))
_DROPPED = frozenset({"tracked-changes", "annotation", "annotation-end", "note-citation", "forms", "variable-decls"})
_MOST_BLANKS = 100


def extract(data: bytes, filename: str) -> Extraction:
    """The content; each slide or drawing is a page."""
    from lxml import etree  # noqa: PLC0415

    archive = Archive(data, filename)
    manifest = "META-INF/manifest.xml"
    if manifest in archive.names and any(local(e.tag) == "encryption-data" for e in archive.xml(manifest).iter()):
        raise Encrypted(f"{filename}: needs a password; upload it without one")
    content = archive.xml("content.xml")
    slides = [element for element in content.iter() if local(element.tag) == "page"]
    return Extraction([_text(root) for root in slides or [content]], f"lxml {etree.__version__}")


def _text(root: "_Element") -> str:
    from lxml import etree  # noqa: PLC0415

    lines = _Lines()
    walk = etree.iterwalk(root, events=("start", "end"))
    for event, element in walk:
        tag = local(element.tag)
        if event == "start":
            lines.open(tag, element)
            if tag in _DROPPED:
                walk.skip_subtree()
            elif lines.in_paragraph:
                lines.add(element.text)
        else:
            lines.close(tag)
            if lines.in_paragraph and element is not root:
                lines.add(element.tail)
    return lines.result()


class _Lines(Lines):
    """What elements do; only paragraphs hold text, what stands between elements elsewhere is indentation."""

    def __init__(self) -> None:
        super().__init__()
        self.in_paragraph = 0
        self._lists = 0

    def open(self, tag: str, element: "_Element") -> None:
        """An element begins."""
        if tag == "h":
            level = attribute(element, "outline-level") or ""
            self.heading(int(level) if level.isdecimal() else 1)
        elif tag == "p":
            self.breaks(1 if self._lists else 2)
        elif tag == "list-item":
            self.item(max(1, self._lists))
        elif tag == "table-row":
            self.open_row()
        elif tag in {"table-cell", "covered-table-cell"}:
            self.open_cell()
        elif tag == "s":
            count = attribute(element, "c") or ""
            self.add(" " * (min(int(count), _MOST_BLANKS) if count.isdecimal() else 1), verbatim=True)
        elif tag in {"tab", "line-break"}:
            self.add("\t" if tag == "tab" else "\n", verbatim=True)
        elif tag == "note":
            self.add(" [")
        self._lists += tag == "list"
        self.in_paragraph += tag in {"p", "h"}

    def close(self, tag: str) -> None:
        """It ends."""
        self._lists -= tag == "list"
        self.in_paragraph -= tag in {"p", "h"}
        if tag in {"h", "p"}:
            self.end(1 if self._lists else 2)
        elif tag == "table-row":
            self.close_row()
        elif tag in {"table", "list"}:
            self.breaks(2)
        elif tag == "note":
            self.add("]")


def _recognises(sample: Sample) -> bool:
    return sample.mimetype.startswith(_MIMETYPES)


FORMAT = Format(
    kind="odf",
    title="OpenDocument texts and presentations (ODT, ODP)",
    suffixes=(".odt", ".odp", ".ott", ".odg"),
    extract=extract,
    recognises=_recognises,
)
