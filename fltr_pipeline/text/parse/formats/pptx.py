"""PowerPoint presentations: a page per slide, its title as heading, tables, charts and diagrams, and its notes.

Belongs here: PPTX to text. Does not: masters and layouts, whose text is only a prompt to its author.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fltr_pipeline.errors import Empty
from fltr_pipeline.text.parse.archive import Archive, attribute, local
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.lines import Lines

if TYPE_CHECKING:
    from lxml.etree import _Element

_TITLES = frozenset({"title", "ctrTitle"})
_PROMPTS = frozenset({"sldNum", "dt", "ftr", "hdr", "sldImg"})
"""Placeholders for what repeats on every slide."""

_BESIDE = frozenset({"chart", "diagramData"})


def extract(data: bytes, filename: str) -> Extraction:
    """The slides in the order of the presentation."""
    from lxml import etree  # noqa: PLC0415

    archive = Archive(data, filename)
    pages = [_slide(archive, part) for part in _slides(archive)]
    if not pages:
        raise Empty(f"{filename}: the presentation has no slides")
    return Extraction(pages, f"lxml {etree.__version__}")


def _slides(archive: Archive) -> Iterator[str]:
    part = archive.main_part("ppt/presentation.xml")
    related = archive.related(part)
    for element in archive.xml(part).iter():
        if local(element.tag) == "sldId":
            found = [related[value] for key, value in element.attrib.items() if value in related and "}" in str(key)]
            yield from (name for kind, name in found if kind == "slide")


def _slide(archive: Archive, part: str) -> str:
    slide = _Slide()
    slide.read(archive.xml(part))
    for kind, name in archive.related(part).values():
        if name in archive.names and kind in _BESIDE:
            slide.breaks(2)
            slide.read(archive.xml(name))
        elif name in archive.names and kind == "notesSlide":
            notes = _Slide()
            notes.read(archive.xml(name))
            if text := notes.result():
                slide.breaks(2)
                slide.add(f"Notes:\n{text}", verbatim=True)
    return slide.result()


class _Slide(Lines):
    """Shapes and their paragraphs; the labels and values of a chart stand in `v`."""

    def __init__(self) -> None:
        super().__init__()
        self._in_title = False

    def read(self, root: "_Element") -> None:
        """All shapes below `root`, in their order."""
        from lxml import etree  # noqa: PLC0415

        walk = etree.iterwalk(root, events=("start", "end"))
        for event, element in walk:
            tag = local(element.tag)
            if event == "end":
                self._close(tag)
            elif tag == "Fallback" or (tag == "sp" and _placeholder(element) in _PROMPTS):
                walk.skip_subtree()
            else:
                self._open(tag, element)

    def _open(self, tag: str, element: "_Element") -> None:
        if tag == "sp":
            self.breaks(2)
            self._in_title = _placeholder(element) in _TITLES
        elif tag == "p" and self._in_title:
            self.heading(1)
            self._in_title = False
        elif tag == "tr":
            self.open_row()
        elif tag == "tc":
            self.open_cell()
        elif tag in {"t", "v"}:
            self.add(element.text, verbatim=True)
        elif tag == "br":
            self.breaks(1)

    def _close(self, tag: str) -> None:
        if tag == "tr":
            self.close_row()
        elif tag in {"p", "v"}:
            self.end(1)
        elif tag in {"sp", "tbl"}:
            self.end(2)


def _placeholder(shape: "_Element") -> str | None:
    return next((attribute(e, "type") or "body" for e in shape.iter() if local(e.tag) == "ph"), None)


FORMAT = Format(
    kind="pptx",
    title="PowerPoint presentations (PPTX)",
    suffixes=(".pptx", ".pptm", ".ppsx", ".potx"),
    extract=extract,
    recognises=lambda sample: sample.is_office("ppt"),
)
