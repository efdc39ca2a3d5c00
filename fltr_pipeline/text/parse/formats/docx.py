"""Word documents: the text of the body with its headings, lists, tables, text boxes, formulas and notes.

Belongs here: DOCX to text. Does not: headers and footers, which repeat; what was deleted under revision; comments.
A Word document has no pages before it is laid out: it is one page.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fltr_pipeline.text.parse.archive import Archive, attribute, local
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.lines import Lines

if TYPE_CHECKING:
    from lxml.etree import _Element

_DROPPED = frozenset(
    {"del", "moveFrom", "Fallback", "instrText", "delText", "pPr", "rPr", "sectPr", "tblPr", "rPrChange"}
)
"""`Fallback` holds again, for old programs, what stands beside it."""

_CHARACTERS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_NOTES = ("footnotes", "endnotes")
_BODY_TEXT_LEVEL = 9


def extract(data: bytes, filename: str) -> Extraction:
    """The body, then the notes."""
    from lxml import etree  # noqa: PLC0415

    archive = Archive(data, filename)
    part = archive.main_part("word/document.xml")
    related = dict(archive.related(part).values())
    body = _Body(_heading_ranks(archive, related.get("styles")))
    body.read(archive.xml(part))
    for notes in _NOTES:
        if related.get(notes) in archive.names:
            body.breaks(2)
            body.read(archive.xml(related[notes]))
    return Extraction([body.result()], f"lxml {etree.__version__}")


def _heading_ranks(archive: Archive, part: str | None) -> Mapping[str, int]:
    """Style → rank of the heading that it makes; a style that has none of its own inherits one."""
    if part not in archive.names:
        return {}
    own: dict[str, int | None] = {}
    bases: dict[str, str | None] = {}
    for style in archive.xml(part):
        identity = attribute(style, "styleId")
        if local(style.tag) == "style" and identity:
            own[identity] = _rank(style)
            base = next((child for child in style if local(child.tag) == "basedOn"), None)
            bases[identity] = None if base is None else attribute(base, "val")
    ranks: dict[str, int] = {}
    for identity in own:
        seen: set[str] = set()
        at: str | None = identity
        while at in own and own[at] is None and at not in seen:
            seen.add(at)
            at = bases[at]
        if rank := own.get(at or ""):
            ranks[identity] = rank
    return ranks


def _rank(style: "_Element") -> int | None:
    for element in style.iter():
        if local(element.tag) == "outlineLvl":
            level = attribute(element, "val") or ""
            return int(level) + 1 if level.isdecimal() and int(level) < _BODY_TEXT_LEVEL else 0
        if local(element.tag) == "name" and (attribute(element, "val") or "").lower() == "title":
            return 1
    return None


class _Body(Lines):
    def __init__(self, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self._ranks = ranks

    def read(self, root: "_Element") -> None:
        """All paragraphs and tables below `root`, in their order."""
        from lxml import etree  # noqa: PLC0415

        walk = etree.iterwalk(root, events=("start", "end"))
        for event, element in walk:
            tag = local(element.tag)
            if event == "end":
                self._close(tag, element)
            elif tag in _DROPPED or attribute(element, "type") in {"separator", "continuationSeparator"}:
                walk.skip_subtree()
            else:
                self._open(tag, element)

    def _open(self, tag: str, element: "_Element") -> None:
        if tag == "t":
            self.add(element.text, verbatim=True)
        elif tag in _CHARACTERS:
            self.add(_CHARACTERS[tag], verbatim=True)
        elif tag == "p":
            self._paragraph(element)
        elif tag == "tbl":
            self.breaks(2)
        elif tag == "tr":
            self.open_row()
        elif tag == "tc":
            self.open_cell()

    def _close(self, tag: str, element: "_Element") -> None:
        if tag == "p":
            self.end(1 if self._is_item(element) else 2)
        elif tag == "tr":
            self.close_row()
        elif tag == "tbl":
            self.breaks(2)

    def _paragraph(self, element: "_Element") -> None:
        style = _property(element, "pStyle")
        rank = self._ranks.get(attribute(style, "val") or "", 0) if style is not None else 0
        level = _property(element, "outlineLvl")
        if level is not None and (attribute(level, "val") or "").isdecimal():
            rank = (int(attribute(level, "val") or 0) + 1) % (_BODY_TEXT_LEVEL + 1)
        if rank:
            self.heading(rank)
        elif self._is_item(element):
            self.item()
        else:
            self.breaks(2)

    def _is_item(self, element: "_Element") -> bool:
        return _property(element, "numPr") is not None


def _property(paragraph: "_Element", name: str) -> "_Element | None":
    for child in paragraph:
        if local(child.tag) == "pPr":
            return next((element for element in child if local(element.tag) == name), None)
    return None


FORMAT = Format(
    kind="docx",
    title="Word documents (DOCX)",
    suffixes=(".docx", ".docm", ".dotx"),
    extract=extract,
    recognises=lambda sample: sample.is_office("word"),
)
