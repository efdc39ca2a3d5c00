"""HTML through lxml: what a reader sees of a page, as plain text with its headings, lists and tables.

Belongs here: HTML to text. Does not: fetching anything; the parser has no network and resolves no entity beyond HTML's.
"""

import re
from typing import TYPE_CHECKING

from fltr_pipeline.errors import Corrupt
from fltr_pipeline.text.parse.decode import decode
from fltr_pipeline.text.parse.extraction import Extraction

if TYPE_CHECKING:
    from lxml.etree import _Element

_DROPPED = frozenset({"script", "style", "nav", "template", "noscript", "svg", "iframe", "object", "head"})
_HEADINGS = {f"h{rank}": "#" * rank + " " for rank in range(1, 7)}
_PARAGRAPHS = frozenset(_HEADINGS) | {
    *("address", "article", "aside", "blockquote", "body", "details", "div", "dl", "fieldset", "figcaption", "figure"),
    *("footer", "form", "header", "hr", "main", "ol", "p", "pre", "section", "summary", "table", "ul"),
}
_LINES = frozenset({"br", "caption", "dd", "dt", "li", "option", "tr"})
_CELLS = frozenset({"td", "th"})

_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})|<\?xml[^>]{0,100}encoding=["']([\w.:-]{2,40})""", re.I
)
_HEAD = 4096
"""Bytes in which a declaration is looked for."""

_AS_BROWSERS_DO = dict.fromkeys(("iso-8859-1", "latin1", "us-ascii"), "cp1252")
_SPACE = re.compile(r"[ \t\r\n\f]+")


def extract(data: bytes, filename: str) -> Extraction:
    """The text of the page, its title first.

    Headings are marked as in Markdown, so that they are still seen as such; blocks are separated by blank lines.
    """
    from lxml import etree  # noqa: PLC0415

    # huge_tree: without it libxml2 drops what is nested deeper than 256, with it 2048; the worker's memory limit holds.
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, huge_tree=True, remove_comments=True, remove_pis=True)
    text = decode(data, filename, declared=_declared(data))[0].replace("\x00", "")
    try:
        root = etree.fromstring(text.encode("utf-8", "replace"), parser) if text.strip() else None
    except etree.XMLSyntaxError as error:
        if error.code == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError from None
        raise Corrupt(f"{filename}: is no readable HTML ({error.msg}); save it again and upload it anew") from None
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        raise Corrupt(
            f"{filename}: its elements are nested too deep to be read ({parser.error_log.last_error.message})"
        )
    return Extraction([""] if root is None else [_text(root)], f"lxml {etree.__version__}")


def _declared(data: bytes) -> str | None:
    match = _DECLARED.search(data[:_HEAD])
    if match is None:
        return None
    name = (match[1] or match[2]).decode("ascii").lower()
    return _AS_BROWSERS_DO.get(name, name)


class _Lines:
    """Collects text; breaks asked for twice are made once."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._newlines = 2
        self._space = False

    def breaks(self, newlines: int) -> None:
        """At least so many newlines before what comes next."""
        if newlines > self._newlines:
            self._parts.append("\n" * (newlines - self._newlines))
            self._newlines = newlines
        self._space = False

    def add(self, text: str | None, *, verbatim: bool = False) -> None:
        """Text, its white space collapsed as a browser does it unless `verbatim`."""
        if not text:
            return
        if verbatim:
            self._parts.append(text)
            self._newlines = 0
            return
        collapsed = _SPACE.sub(" ", text)
        words = collapsed.strip(" ")
        if words:
            before = " " if (self._space or collapsed[0] == " ") and not self._newlines else ""
            self._parts.append(before + words)
            self._newlines = 0
        self._space = collapsed[-1] == " " if words else True

    def separate(self, mark: str) -> None:
        """`mark`, unless a line has just begun."""
        if not self._newlines:
            self._parts.append(mark)
            self._space = False

    def result(self) -> str:
        """All of it."""
        return "".join(self._parts).strip()


def _text(root: "_Element") -> str:
    from lxml import etree  # noqa: PLC0415

    lines = _Lines()
    title = root.findtext(".//head/title")
    if title and title.strip() and not _is_first_heading(root, title):
        lines.add("# " + title)
        lines.breaks(2)
    verbatim = 0
    walk = etree.iterwalk(root, events=("start", "end"))
    for event, element in walk:
        tag = element.tag
        if event == "start":
            _open(lines, tag)
            verbatim += tag == "pre"
            if tag in _DROPPED:
                walk.skip_subtree()
            else:
                lines.add(element.text, verbatim=verbatim > 0)
        else:
            verbatim -= tag == "pre"
            _close(lines, tag)
            if element is not root:
                lines.add(element.tail, verbatim=verbatim > 0)
    return lines.result()


def _is_first_heading(root: "_Element", title: str) -> bool:
    heading = root.find(".//h1")
    return heading is not None and "".join(heading.itertext()).split() == title.split()


def _open(lines: _Lines, tag: str) -> None:
    if tag in _PARAGRAPHS:
        lines.breaks(2)
    elif tag in _LINES:
        lines.breaks(1)
    if tag in _CELLS:
        lines.separate(" | ")
    elif tag == "li":
        lines.add("- ")
    elif tag in _HEADINGS:
        lines.add(_HEADINGS[tag])


def _close(lines: _Lines, tag: str) -> None:
    if tag in _PARAGRAPHS:
        lines.breaks(2)
    elif tag in _LINES:
        lines.breaks(1)
