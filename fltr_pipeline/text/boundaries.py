r"""Where a text may be cut, and how good each place is.

Belongs here: the structure that can be seen in plain text (pages, headings, paragraphs, list items, sentences, lines).
Does not: sizes, tokens or the choice among the places.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_CONTEXT = 48
"""Characters behind a boundary that its hash looks at: an edit further away leaves the hash alone."""


class Level(IntEnum):
    """How well a text can be cut at a place; more is better."""

    CHARACTER = 0
    AFTER_HEADING = 1
    WORD = 2
    LINE = 3
    SENTENCE = 4
    ITEM = 5
    PARAGRAPH = 6
    HEADING = 7
    """A heading of unknown rank; `HEADING + n` is one of higher rank, up to `HEADING + 6` for `# Title`."""
    PAGE = 15
    """Always cut."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place between two atoms."""

    position: int
    """Offset in characters; the text before it may end in white space, the text after it may begin with some."""
    level: int


_BREAK = re.compile(
    r"""
    [\f\n.!?\u2026\u3002\uff01\uff1f\uff61]  # a set comes first, so that the search runs past the rest of the text
    (?:
      (?<=\f)(?P<page>)
    | (?<=\n)(?P<blank>(?:[^\S\f\n]*\n)+)
    | (?<=\n)(?P<line>)
    | (?<=[.!?\u2026])(?<!\b\w.)(?<!\b\d\d.)(?<![.!?\u2026].)  # not behind "J." or "12."
      [.!?\u2026]*+["'\u201d\u2019\u00bb)\]]*+[^\S\f\n]+
    | (?<=[\u3002\uff01\uff1f\uff61])[\u201d\u2019\u300d\u300f\uff09]*  # Chinese and Japanese
    )
    """,
    re.VERBOSE,
)
_SENTENCE_END = re.compile(r"""[.!?:;\u2026\u3002\uff01\uff1f]["'\u201d\u2019\u00bb)\]]*[^\S\f\n]*\Z""")
_ITEM = re.compile(r"[^\S\f\n]*(?:[-*+•|]|\d{1,3}[.)])[^\S\f\n]")
_FENCE = re.compile(r"[^\S\f\n]*(?:`{3,}|~{3,})[^\S\f\n]*(?P<language>[^`\f\n]*)(?=[\f\n]|\Z)")
_HASHES = re.compile(r"(#{1,6})[^\S\f\n]+\S[^\f\n]*")
_UNDERLINED = re.compile(r"\S[^\f\n]{0,120}\n(={3,}|-{3,})[^\S\f\n]*(?=[\f\n]|\Z)")
_NUMBERED = re.compile(
    r"(?:\d+(?:\.\d+)*\.?|(?:Chapter|Section|Article|Part|Appendix|§)[^\S\f\n]+[\dA-Z]+\.?)(?:[^\S\f\n]+[^\f\n]{1,70})?"
    r"(?<![.,;:])(?=[\f\n]|\Z)"
)


def structural(text: str) -> list[Boundary]:
    """The boundaries that the text's own structure shows, in order; the ends of the text are not among them."""
    found: list[Boundary] = []
    rank, heading_end = _heading(text, 0)
    fenced = _fenced(text, 0, before=False)
    for match in _BREAK.finditer(text):
        position = match.end()
        if position == len(text):
            break
        kind = match.lastgroup
        new_line = kind is not None
        if kind == "page":
            fenced = False
        elif new_line:
            fenced = _fenced(text, position, before=fenced)
        after_heading = match.start() <= heading_end
        if new_line and not fenced and position > heading_end:
            rank, heading_end = _heading(text, position, apart=kind != "line")
        else:
            rank = 0
        found.append(Boundary(position, _level(text, match, rank, after_heading=after_heading)))
    return found


def _fenced(text: str, position: int, *, before: bool) -> bool:
    """Whether a code block is open behind the line at `position`.

    A fence that names a language always opens one, so that a lost fence does not turn all later code inside out.
    """
    match = _FENCE.match(text, position)
    return before if match is None else bool(match["language"]) or not before


def _level(text: str, match: re.Match[str], rank: int, *, after_heading: bool) -> int:
    kind = match.lastgroup
    level: int = Level.LINE
    if kind == "page":
        level = Level.PAGE
    elif after_heading:
        level = Level.AFTER_HEADING
    elif rank:
        level = rank
    elif kind == "blank":
        level = Level.PARAGRAPH
    elif kind is None:
        level = Level.SENTENCE
    elif _ITEM.match(text, match.end()) or _SENTENCE_END.search(text, max(0, match.start() - 6), match.start()):
        level = Level.ITEM
    return level


def _heading(text: str, position: int, *, apart: bool = True) -> tuple[int, int]:
    """The level of the heading that begins at `position` and its end, or (0, -1); a numbered one must stand `apart`."""
    if match := _HASHES.match(text, position):
        return Level.HEADING + 7 - len(match[1]), match.end()
    if match := _UNDERLINED.match(text, position):
        return Level.HEADING + (6 if match[1][0] == "=" else 5), match.end()
    if apart and (match := _NUMBERED.match(text, position)):
        return Level.HEADING, match.end()
    return 0, -1


_WORD = re.compile(r"\S+\s*|\s+")
_CHARACTER = re.compile("(?s:.(?:\u200d.|[\u0300-\u036f\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]){0,1})")
"""A code point with the mark, selector or joined emoji behind it: at most three code points."""


def words(text: str, start: int, end: int) -> Iterator[Boundary]:
    """The boundaries between the words of `text[start:end]`."""
    return (Boundary(m.start(), Level.WORD) for m in _WORD.finditer(text, start, end) if m.start() > start)


def characters(text: str, start: int, end: int) -> Iterator[Boundary]:
    """The boundaries between the characters of `text[start:end]`, as a reader sees them."""
    return (Boundary(m.start(), Level.CHARACTER) for m in _CHARACTER.finditer(text, start, end) if m.start() > start)


def priority(text: str, boundary: Boundary) -> int:
    """A number that orders boundaries by level, then by a hash of the text that follows."""
    following = text[boundary.position : boundary.position + _CONTEXT].lstrip()
    return boundary.level << 32 | zlib.crc32(following.encode("utf-8", "surrogatepass"))
