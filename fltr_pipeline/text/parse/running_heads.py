"""Takes out what a layout repeats on its pages: page numbers, and the titles above and below the text.

Belongs here: finding and dropping those lines. Does not: anything in the middle of a page.

Conservative: a line goes only if the very same one stands at the same edge of three pages, and the first of them keeps
it; a number only if it counts with the pages.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

_LEAST_PAGES = 3
_MOST_LENGTH = 150
_LINES_AT_AN_EDGE = 2
_PAGE_NUMBER = re.compile(
    r"\W*(?:(?:page|pages|pg|p|seite|s|página|pagina|pag|pág|sida|side|strona|str|стр|страница)\.?\s+)?"
    r"(\d{1,5})(?:\s*(?:/|of|von|de|di|sur|av|af|z|из)\s*\d{1,5})?\W*",
    re.IGNORECASE,
)
"""A line that is a page's number and nothing else: `12`, `- 12 -`, `Page 12 of 50`."""

Edge = Callable[[Sequence[str]], int]
"""The index of a page's outermost line."""


def without_running_heads(pages: Sequence[str]) -> list[str]:
    """The pages without what repeats; as many as before, though a page may have nothing left."""
    if len(pages) < _LEAST_PAGES:
        return list(pages)
    split = [page.split("\n") for page in pages]
    for edge in (_first, _last):
        for _ in range(_LINES_AT_AN_EDGE):
            if not _drop(split, edge):
                break
    return ["\n".join(lines) for lines in split]


def _drop(pages: Sequence[list[str]], edge: Edge) -> bool:
    """Empty the repeated lines at one edge; False if there are none."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, lines in enumerate(pages):
        if lines and (line := lines[edge(lines)].strip()) and len(line) <= _MOST_LENGTH:
            found[line].append(number)
    offsets = _offsets(found)
    drop: set[int] = set()
    for line, numbers in found.items():
        printed = _printed(line)
        if printed is not None:
            drop.update(number for number in numbers if printed - number in offsets)
        elif len(numbers) >= _LEAST_PAGES:
            drop.update(numbers[1:])
    for number in drop:
        del pages[number][edge(pages[number])]
    return bool(drop)


def _offsets(found: Mapping[str, Sequence[int]]) -> set[int]:
    """By how much printed page numbers differ from the pages' indexes: what at least three pages agree on."""
    differences = [
        printed - number
        for line, numbers in found.items()
        if (printed := _printed(line)) is not None
        for number in numbers
    ]
    return {offset for offset, count in Counter(differences).items() if count >= _LEAST_PAGES}


def _printed(line: str) -> int | None:
    match = _PAGE_NUMBER.fullmatch(line)
    return int(match[1]) if match else None


def _first(lines: Sequence[str]) -> int:
    return next((index for index, line in enumerate(lines) if line.strip()), 0)


def _last(lines: Sequence[str]) -> int:
    return next((index for index in range(len(lines) - 1, -1, -1) if lines[index].strip()), 0)
