"""Edits as people make them: a paragraph of a real document inserted, deleted or changed, by seed.

Belongs here: making the edits, and counting the chunks that are new after one. Does not: timing, assertions.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from fltr_pipeline.models import PAGE_BREAK
from fltr_pipeline.text.chunk import chunk_text
from fltr_pipeline.text.tokenizer import Tokenizer

Edit = Callable[[list[str], int, str], None]
"""Changes one of the parts, in place; the text is for something new."""

_BETWEEN_PARAGRAPHS = re.compile(rf"(\n[^\S{PAGE_BREAK}]*\n|{PAGE_BREAK})")
_BETWEEN_LINES = re.compile(rf"(\n|{PAGE_BREAK})")
"""For a PDF's text, which has no blank lines."""
_FENCE = "```"
_LONGEST = 1_000
"""Characters of a paragraph that is inserted."""


def _insert(parts: list[str], place: int, new: str) -> None:
    parts[place:place] = [new, parts[place + 1]]


def _delete(parts: list[str], place: int, _: str) -> None:
    del parts[place : place + 2]


def _change(parts: list[str], place: int, new: str) -> None:
    words = parts[place].split(" ")
    middle = len(words) // 2
    parts[place] = " ".join([*words[:middle], *new.split()[:5], *words[middle + 2 :]])


EDITS: dict[str, Edit] = {"insert": _insert, "delete": _delete, "change": _change}


def edited(text: str, edit: str, times: int, rng: random.Random) -> Iterator[str]:
    """The text with one paragraph inserted, deleted or changed, each time another one."""
    parts = _BETWEEN_PARAGRAPHS.split(text)
    if len(parts) < len(text) / _LONGEST:
        parts = _BETWEEN_LINES.split(text)
    # Every second part is what separates paragraphs; a deletion takes that with it, but for a page's end.
    # Half a block of code is no paragraph: a fence without its other one makes code of what follows.
    whole = [
        n
        for n in range(0, len(parts) - 1, 2)
        if parts[n].strip() and parts[n + 1] != PAGE_BREAK and _FENCE not in parts[n]
    ]
    short = [parts[n] for n in whole if len(parts[n]) <= _LONGEST]
    for place in rng.sample(whole, times):
        copy = list(parts)
        EDITS[edit](copy, place, "New here: " + rng.choice(short))
        yield "".join(copy)


def new_chunks(text: str, changed: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> tuple[int, list[int]]:
    """How many chunks the text has, and how many of each changed text are new: those are embedded."""
    before = Counter(c.text for c in chunk_text(text, tokenizer, max_tokens=max_tokens))
    after = (Counter(c.text for c in chunk_text(one, tokenizer, max_tokens=max_tokens)) for one in changed)
    return before.total(), [(chunks - before).total() for chunks in after]
