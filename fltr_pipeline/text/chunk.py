"""Cuts a document's text into chunks that fit the model, at boundaries that an edit elsewhere does not move.

Belongs here: which cuts are made. Does not: where a text may be cut and how good each place is (`boundaries`).

A page's text is a row of atoms (lines and sentences; words and characters only where those are too long). A piece
above the limit is divided at its best boundary, and so are its parts, until all fit. "Best" is structure first, then a
hash of the text that follows: a property of the place, never of how many tokens came before it. An edit therefore only
moves the cuts of the pieces that contain it (the argument of a treap); the other chunks keep their text.

A page above a few hundred thousand characters is cut into stretches first, at the best place in a window: whatever the
text, time is proportional to it, and the memory to a stretch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import attrgetter

from fltr_pipeline.models import PAGE_BREAK, Chunk
from fltr_pipeline.text.boundaries import Boundary, Level, characters, priority, structural, words
from fltr_pipeline.text.tokenizer import SEPARATORS, Tokenizer

CHUNKER_VERSION = "2"
"""Part of the pipeline's fingerprint: raise it when the same input gives other chunks."""

MIN_TOKENS = 16
"""The smallest `max_tokens`: what one character, marks included, can take in a byte-level tokenizer."""

_CHARACTERS_PER_TOKEN = 16
"""A chunk has at most this many characters per token allowed: one unknown token may stand for a 100 kB word."""

_SMALLEST_SHARE = 3
"""A cut leaves at least 1/3 of the limit on either side where the atoms allow it, so that few chunks are tiny."""

_STRETCH = 250_000
"""Characters that are divided at a time: each may become an atom, of some hundred bytes."""

Span = tuple[int, int]


def chunk_text(text: str, tokenizer: Tokenizer, *, max_tokens: int, overlap: int = 0) -> Iterator[Chunk]:
    r"""The chunks of `text`, in order, as they are found; together they hold every character that is not white space.

    A chunk never crosses a page break (`\f`): a citation names one page and can be marked on it, at the price of a
    sentence cut in two where it runs over. Chunks begin and end with other than white space.

    Args:
        text: a document's text, cleaned, its pages separated by form feeds.
        tokenizer: the embedding model's own.
        max_tokens: most tokens in a chunk, special tokens not counted.
        overlap: most tokens of the previous chunk, on the same page, that a chunk repeats at its start; none where a
            very long page was cut into stretches.

    Raises:
        ValueError: `max_tokens` is below `MIN_TOKENS`, or `overlap` is not in 0 … `max_tokens` / 2.
    """
    if max_tokens < MIN_TOKENS or not 0 <= overlap <= max_tokens // 2:
        raise ValueError(f"no chunks of at most {max_tokens} tokens with an overlap of {overlap}")
    return _numbered(text, _pieces(text, tokenizer, max_tokens, overlap))


def _pieces(text: str, tokenizer: Tokenizer, max_tokens: int, overlap: int) -> Iterator["_Piece"]:
    for start, stretch in _stretches(text):
        cutter = _Cutter(stretch, tokenizer)
        pieces = cutter.pieces(max(MIN_TOKENS, max_tokens - overlap))
        if overlap:
            pieces = cutter.overlapping(pieces, overlap, max_tokens)
        yield from (_Piece(start + piece.start, start + piece.end, piece.tokens) for piece in pieces)


def _stretches(text: str) -> Iterator[tuple[int, str]]:
    """As many whole pages as fit, or a part of one that does not; where each begins. Blank ones are left out."""
    start = 0
    while start < len(text):
        part = text[start : start + _STRETCH]
        if not part.strip():
            start += len(part)
            continue
        if start + _STRETCH < len(text):
            part = part[: part.rfind(PAGE_BREAK) + 1 or _best_place(part)]
        yield start, part
        start += len(part)


def _best_place(part: str) -> int:
    """The best boundary in its second half; within a word that is longer, near its end."""
    half, end = len(part) // 2, len(part)
    for boundaries in (structural(part), words(part, half, end), characters(part, end - end // 64, end)):
        if found := [boundary for boundary in boundaries if boundary.position > half]:
            return max(found, key=lambda boundary: priority(part, boundary)).position
    return len(part)


def _numbered(text: str, pieces: Iterable["_Piece"]) -> Iterator[Chunk]:
    page, seen = 1, 0
    for ordinal, piece in enumerate(pieces):
        page += text.count(PAGE_BREAK, seen, piece.start)
        seen = piece.start
        yield Chunk(ordinal, page, piece.start, piece.end, piece.tokens, text[piece.start : piece.end])


@dataclass(frozen=True, slots=True)
class _Piece:
    """A span that is not blank at either end, with its size."""

    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Atom:
    """What is not cut: it begins at its boundary and ends at the next one."""

    begin: Boundary
    tokens: int
    """Special tokens not counted."""
    weight: int
    """Tokens, or more where the atom has very many characters per token."""


class _Cutter:
    """One stretch of a document's text, and what it takes to measure parts of it."""

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self._text = text
        self._tokenizer = tokenizer
        self._special = tokenizer.special_tokens

    def pieces(self, limit: int) -> list[_Piece]:
        """All of it in pieces of at most `limit` tokens."""
        boundaries = [Boundary(0, Level.PAGE), *structural(self._text)]
        return list(self._fitting(boundaries, len(self._text), limit, limit))

    def measured(self, spans: Sequence[Span]) -> list[_Piece]:
        """The spans with their sizes, special tokens included."""
        counts = self._tokenizer.count([self._text[start:end] for start, end in spans])
        return [_Piece(start, end, tokens) for (start, end), tokens in zip(spans, counts, strict=True)]

    def overlapping(self, pieces: Sequence[_Piece], overlap: int, limit: int) -> list[_Piece]:
        """The pieces, each begun earlier by whole words of its predecessor on the page, where it then still fits."""
        spans = [(piece.start, piece.end) for piece in pieces]
        for index, (before, piece) in enumerate(pairwise(pieces), start=1):
            if PAGE_BREAK not in self._text[before.end : piece.start]:
                spans[index] = self._stripped(self._last_words(before, overlap), piece.end)
        longer = self.measured(spans)
        return [new if new.tokens - self._special <= limit else old for old, new in zip(pieces, longer, strict=True)]

    def _last_words(self, piece: _Piece, tokens: int) -> int:
        """Where the last `tokens` tokens of the piece begin, moved forward to the start of a word."""
        offsets = self._tokenizer.offsets(self._text[piece.start : piece.end])[-tokens:]
        if not offsets:
            return piece.end
        earliest = piece.start + offsets[0][0]
        return next(
            (b.position for b in words(self._text, piece.start, piece.end) if b.position >= earliest), piece.end
        )

    def _fitting(self, boundaries: list[Boundary], end: int, limit: int, allowed: int) -> Iterator[_Piece]:
        """Divide by the atoms' sizes; where a piece turns out to have more tokens than allowed, divide it further."""
        for piece in self._divided(self._atoms(boundaries, end, limit), end, limit):
            if piece.tokens - self._special <= allowed or limit == 1:
                yield piece
            else:
                first = bisect_right(boundaries, piece.start, key=attrgetter("position"))
                inner = boundaries[first : bisect_left(boundaries, piece.end, key=attrgetter("position"))]
                whole = [Boundary(piece.start, Level.PAGE), *inner]
                yield from self._fitting(whole, piece.end, max(1, limit * 3 // 4), allowed)

    def _divided(self, atoms: Sequence[_Atom], end: int, limit: int) -> list[_Piece]:
        """The pieces that are not blank, measured: the parts of a text need not add up to the whole's tokens."""
        starts = [atom.begin.position for atom in atoms] + [end]
        total = [0, *accumulate(atom.tokens for atom in atoms)]
        sizes: dict[Span, int | None] = {}
        for first, last in _divided(self._text, atoms, limit):
            span = self._stripped(starts[first], starts[last])
            if span[0] < span[1]:
                adds_up = self._adds_up(starts[first + 1 : last])
                sizes[span] = total[last] - total[first] + self._special if adds_up else None
        pieces = iter(self.measured([span for span, tokens in sizes.items() if tokens is None]))
        return [next(pieces) if tokens is None else _Piece(*span, tokens) for span, tokens in sizes.items()]

    def _adds_up(self, inside: Sequence[int]) -> bool:
        """Whether a piece that is cut at these places has as many tokens as its parts together."""
        return self._tokenizer.word_by_word and all(self._text[place - 1] in SEPARATORS for place in inside)

    def _atoms(self, boundaries: list[Boundary], end: int, limit: int) -> list[_Atom]:
        atoms = self._weighed(boundaries, end, limit)
        for finer in (words, characters):
            ends = [*(atom.begin.position for atom in atoms[1:]), end]
            refined: list[_Atom] = []
            for atom, stop in zip(atoms, ends, strict=True):
                if atom.weight <= limit:
                    refined.append(atom)
                else:
                    inside = finer(self._text, atom.begin.position, stop)
                    refined += self._weighed([atom.begin, *inside], stop, limit)
            atoms = refined
        return atoms

    def _weighed(self, boundaries: Sequence[Boundary], end: int, limit: int) -> list[_Atom]:
        """Atoms that are too long by their characters are not tokenized: they will be refined."""
        ends = [*(boundary.position for boundary in boundaries[1:]), end]
        texts = [self._text[boundary.position : stop] for boundary, stop in zip(boundaries, ends, strict=True)]
        longest = limit * _CHARACTERS_PER_TOKEN
        counts = iter(self._tokenizer.count([text for text in texts if len(text) <= longest]))
        atoms = []
        for boundary, text in zip(boundaries, texts, strict=True):
            tokens = next(counts) - self._special if len(text) <= longest else 0
            atoms.append(_Atom(boundary, tokens, max(tokens, -(-len(text) // _CHARACTERS_PER_TOKEN))))
        return atoms

    def _stripped(self, start: int, end: int) -> Span:
        text = self._text[start:end]
        start += len(text) - len(text.lstrip())
        return start, max(start, end - (len(text) - len(text.rstrip())))


def _divided(text: str, atoms: Sequence[_Atom], limit: int) -> Iterator[Span]:
    """Runs of atoms, as indices (first, last + 1), in order, each within `limit` unless it is a single atom."""
    total = [0, *accumulate(atom.weight for atom in atoms)]
    order = [priority(text, atom.begin) for atom in atoms]
    pages = [index for index, atom in enumerate(atoms) if atom.begin.level == Level.PAGE]
    waiting = list(pairwise([*pages, len(atoms)]))[::-1]
    while waiting:
        first, last = waiting.pop()
        if last - first == 1 or total[last] - total[first] <= limit:
            yield first, last
        else:
            cut = _best_cut(total, order, first, last, limit // _SMALLEST_SHARE)
            waiting += [(cut, last), (first, cut)]


def _best_cut(total: Sequence[int], order: Sequence[int], first: int, last: int, floor: int) -> int:
    """The atom to cut before: the best that leaves `floor` on both sides; of equals the one next to the middle."""
    lowest = bisect_left(total, total[first] + floor, first + 1, last)
    highest = bisect_right(total, total[last] - floor, first + 1, last)
    if lowest >= highest:
        lowest, highest = first + 1, last
    best = max(order[lowest:highest])
    middle = (total[first] + total[last]) / 2
    centre = bisect_left(total, middle, lowest, highest)
    before = next((index for index in range(centre - 1, lowest - 1, -1) if order[index] == best), None)
    behind = next((index for index in range(centre, highest) if order[index] == best), None)
    return min((index for index in (before, behind) if index is not None), key=lambda index: abs(total[index] - middle))
