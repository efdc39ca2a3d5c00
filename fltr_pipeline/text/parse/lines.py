"""Collects the text of marked-up documents: headings, lists, tables and paragraphs, all formats in one manner.

Belongs here: where lines break and how a table's row reads. Does not: what in a format makes a heading or a table.
"""

import re
from collections.abc import Iterable

_SPACE = re.compile(r"[ \t\r\n\f]+")
SEPARATOR = " | "
"""Between the cells of a table's row."""


def row(cells: Iterable[str]) -> str:
    """A table's row as one line; empty if all of its cells are."""
    words = [" ".join(cell.split()) for cell in cells]
    while words and not words[-1]:
        words.pop()
    return SEPARATOR.join(words)


class Lines:
    """Breaks asked for twice are made once; a mark (`# `, `- `) without text behind it is not made at all."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._newlines = 2
        self._space = False
        self._mark = ""
        self._rows = 0
        self._cells: list[list[str]] = []

    def breaks(self, newlines: int) -> None:
        """At least so many newlines before what comes next; in a table's cell a blank."""
        if not newlines:
            return
        if self._rows:
            self._put_into_cell(" ")
            return
        if newlines > self._newlines:
            self._parts.append("\n" * (newlines - self._newlines))
            self._newlines = newlines
        self._space = False

    def add(self, text: str | None, *, verbatim: bool = False) -> None:
        """Text, its white space collapsed as a browser does it unless `verbatim`."""
        if not text:
            return
        if self._rows:
            self._put_into_cell(text)
        elif verbatim:
            self._put(text)
        else:
            self._add_collapsed(_SPACE.sub(" ", text))

    def heading(self, rank: int) -> None:
        """What comes next is a heading, marked as in Markdown."""
        self.breaks(2)
        self._set_mark("#" * max(1, min(rank, 6)) + " ")

    def item(self, depth: int = 1) -> None:
        """What comes next is an item of a list."""
        self.breaks(1)
        self._set_mark("  " * (depth - 1) + "- ")

    def end(self, newlines: int) -> None:
        """The heading, item or paragraph is over."""
        self._set_mark("")
        self.breaks(newlines)

    def open_row(self) -> None:
        """A table's row begins; a row within a cell is part of that cell's text."""
        self._rows += 1
        if self._rows == 1:
            self._cells = []

    def open_cell(self) -> None:
        """A cell of the row begins."""
        if self._rows == 1:
            self._cells.append([])
        else:
            self.breaks(1)

    def close_row(self) -> None:
        """The row is over."""
        self._rows -= 1
        if self._rows == 0 and (line := row("".join(cell) for cell in self._cells)):
            self.breaks(1)
            self._put(line)
            self.breaks(1)

    def result(self) -> str:
        """All of it."""
        return "".join(self._parts).strip()

    def _set_mark(self, mark: str) -> None:
        if not self._rows:
            self._mark = mark

    def _put(self, text: str) -> None:
        self._parts.append(self._mark + text)
        self._mark = ""
        self._newlines = 0
        self._space = False

    def _put_into_cell(self, text: str) -> None:
        if not self._cells:
            self._cells.append([])
        self._cells[-1].append(text)

    def _add_collapsed(self, text: str) -> None:
        words = text.strip(" ")
        if words:
            inner = not self._newlines and not self._mark
            self._put((" " if inner and (self._space or text[0] == " ") else "") + words)
        self._space = text[-1] == " " if words else True
