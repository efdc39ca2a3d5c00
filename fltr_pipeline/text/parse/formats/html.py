"""HTML through lxml: the content of a page as plain text with its headings, lists and tables, without its menus.

Belongs here: HTML to text. Does not: fetching anything; the parser has no network and resolves no entity beyond HTML's.
"""

import re
from typing import TYPE_CHECKING

from fltr_pipeline.errors import Corrupt
from fltr_pipeline.text.parse.decode import decode
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.lines import Lines
from fltr_pipeline.text.parse.sample import Sample

if TYPE_CHECKING:
    from lxml.etree import _Element

_DROPPED = frozenset(
    {
        *("script", "style", "nav", "template", "noscript", "svg", "iframe", "object", "head", "button", "select"),
        "dialog",
    }
)
_DROPPED_ROLES = frozenset({"navigation", "search", "menu", "menubar", "dialog", "alertdialog", "toolbar"})
_MENUS = re.compile(
    r"(?<!\S)(?!(?:has|with|no)[_-])(?:\S*[_-])?(?:nav|navbar|navigation|navheader|navfooter|menu|sidebar|breadcrumbs?|"
    r"cookies?|skip-link|mw-jump-link|mw-editsection|noprint|navbox|catlinks|printfooter)(?!\S)",
    re.IGNORECASE,
)
"""Classes and ids by which sites name what surrounds the content."""

_HEADINGS = {f"h{rank}": rank for rank in range(1, 7)}
_CELLS = frozenset({"td", "th"})
_IN_TABLES = _CELLS | {"tr"}
_BREAKS = {
    **dict.fromkeys(_HEADINGS, 2),
    **dict.fromkeys(("address", "article", "aside", "blockquote", "body", "details", "div", "dl", "fieldset"), 2),
    **dict.fromkeys(("figcaption", "figure", "footer", "form", "header", "hr", "main", "ol", "p", "pre", "section"), 2),
    **dict.fromkeys(("summary", "table", "ul"), 2),
    **dict.fromkeys(("br", "caption", "dd", "dt", "li", "option", *_IN_TABLES), 1),
}
"""Newlines before and after an element; 2 make a paragraph."""

_LEAST_SHARE = 0.25
"""Share of a page's text below which a part of it is not believed to be the content."""

_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})|<\?xml[^>]{0,100}encoding=["']([\w.:-]{2,40})""", re.I
)
_HEAD = 4096
"""Bytes in which a declaration is looked for."""

_AS_BROWSERS_DO = dict.fromkeys(("iso-8859-1", "latin1", "us-ascii"), "cp1252")


def extract(data: bytes, filename: str) -> Extraction:
    """The text of the page's content, its title first.

    Headings are marked as in Markdown, so that they are still seen as such; blocks are separated by blank lines.
    """
    from lxml import etree  # noqa: PLC0415

    return Extraction([text_of(data, filename)], f"lxml {etree.__version__}")


def text_of(data: bytes, filename: str, *, declared: str | None = None) -> str:
    """The text of one page; also for formats that hold HTML, which may have `declared` its encoding.

    Raises:
        Corrupt: it can't be read, or is nested too deep to be read whole.
    """
    text = decode(data, filename, declared=declared or _declared(data))[0].replace("\x00", "")
    root = _parsed(text, filename) if text.strip() else None
    return "" if root is None else _text(root)


def _parsed(text: str, filename: str) -> "_Element | None":
    from lxml import etree  # noqa: PLC0415

    # huge_tree: without it libxml2 drops what is nested deeper than 256, with it 2048; the worker's memory limit holds.
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError as error:
        if error.code == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError from None
        raise Corrupt(f"{filename}: is no readable HTML ({error.msg}); save it again and upload it anew") from None
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        raise Corrupt(
            f"{filename}: its elements are nested too deep to be read ({parser.error_log.last_error.message})"
        )
    return root


def _declared(data: bytes) -> str | None:
    match = _DECLARED.search(data[:_HEAD])
    if match is None:
        return None
    name = (match[1] or match[2]).decode("ascii").lower()
    return _AS_BROWSERS_DO.get(name, name)


def _text(root: "_Element") -> str:
    """The content, unless what is left of the page is so little that it can't be it."""
    everything = _walked(root, menus=True)
    whole = _walked(root)
    if len(whole) < _LEAST_SHARE * len(everything):
        return everything
    content = _content(root)
    if content is None:
        return whole
    title = _title(root)
    part = _walked(content)
    if len(part) < _LEAST_SHARE * len(whole):
        return whole
    return f"# {title}\n\n{part}" if title and not _has_heading(content, title) else part


def _content(root: "_Element") -> "_Element | None":
    """The one element that the page itself calls its content."""
    for path in (".//main", ".//*[@role='main']", ".//article"):
        found = root.findall(path)
        if len(found) == 1:
            return found[0]
    return None


def _walked(root: "_Element", *, menus: bool = False) -> str:
    from lxml import etree  # noqa: PLC0415

    lines = _Page()
    title = _title(root)
    if title and not _has_heading(root, title):
        lines.heading(1)
        lines.add(title)
        lines.end(2)
    walk = etree.iterwalk(root, events=("start", "end"))
    for event, element in walk:
        if event == "start":
            lines.open(element)
            if element is not root and _is_dropped(element, menus=menus):
                walk.skip_subtree()
            else:
                lines.add(element.text, verbatim=lines.verbatim > 0)
        else:
            lines.close(element)
            if element is not root:
                lines.add(element.tail, verbatim=lines.verbatim > 0)
    return lines.result()


def _title(root: "_Element") -> str:
    return " ".join((root.findtext("./head/title") or "").split())


def _has_heading(root: "_Element", title: str) -> bool:
    heading = root.find(".//h1")
    return heading is not None and "".join(heading.itertext()).split() == title.split()


def _is_dropped(element: "_Element", *, menus: bool) -> bool:
    tag = element.tag
    if tag in _DROPPED:
        return True
    if menus:
        return False
    if element.get("role") in _DROPPED_ROLES or element.get("hidden") is not None:
        return True
    names = f"{element.get('class', '')} {element.get('id', '')}"
    return len(names) > 1 and tag not in {"body", "html", "main", "article"} and _MENUS.search(names) is not None


class _Page(Lines):
    """What elements do to the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.verbatim = 0
        """How many elements keep their white space here."""
        self._layouts: list[bool] = []
        """Of each table around: whether it arranges a page, rather than data."""

    def open(self, element: "_Element") -> None:
        """An element begins."""
        tag = element.tag
        if tag in _HEADINGS:
            self.heading(_HEADINGS[tag])
        elif tag == "li":
            self.item()
        elif tag in _IN_TABLES and not self._in_layout():
            self.open_row() if tag == "tr" else self.open_cell()
        else:
            self.breaks(_BREAKS.get(tag, 0))
        self.verbatim += tag == "pre"
        if tag == "table":
            self._layouts.append(_is_layout(element))

    def close(self, element: "_Element") -> None:
        """It ends."""
        tag = element.tag
        self.verbatim -= tag == "pre"
        if tag == "table":
            self._layouts.pop()
        if tag == "tr" and not self._in_layout():
            self.close_row()
        elif tag in _HEADINGS or tag == "li":
            self.end(_BREAKS[tag])
        elif tag not in _CELLS or self._in_layout():
            self.breaks(_BREAKS.get(tag, 0))

    def _in_layout(self) -> bool:
        return bool(self._layouts) and self._layouts[-1]


def _is_layout(table: "_Element") -> bool:
    """Tables within or headings within tell a layout from data."""
    if table.get("role") == "presentation":
        return True
    inside = table.iter("table", *_HEADINGS)
    next(inside)
    return next(inside, None) is not None


def _recognises(sample: Sample) -> bool:
    head = sample.head
    return head.startswith(("<!doctype html", "<html")) or (head.startswith("<") and "<html" in head)


FORMAT = Format(
    kind="html",
    title="HTML pages",
    suffixes=(".html", ".htm", ".xhtml"),
    extract=extract,
    recognises=_recognises,
    is_text=True,
)
