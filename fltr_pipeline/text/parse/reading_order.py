"""From lines of text with their places on a page to text as one reads it: columns, rows, paragraphs.

Belongs here: geometry alone. Does not: how lines are found (`rapidocr`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_LEAST_COLUMN_LINES = 3
_PROSE = 8
"""Widths in line heights from which a line is prose: narrower ones side by side are a table's cells."""

_PARAGRAPH = 0.7
"""The gap between two lines, in line heights, from which a new paragraph begins."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it was found, on a page that stands upright: pixels from the left and from the top."""

    text: str
    confidence: float
    """From 0 to 1."""
    left: float
    top: float
    right: float
    bottom: float

    @property
    def height(self) -> float:
        """In pixels, at least one."""
        return max(1.0, self.bottom - self.top)

    @property
    def is_upright(self) -> bool:
        """Not a note that runs up the margin."""
        return self.height < 1.5 * (self.right - self.left) or len(self.text) < 3


def as_text(lines: Sequence[Line]) -> str:
    """The lines in reading order: columns one after the other, what stands in one row on one line."""
    upright = [line for line in lines if line.is_upright]
    notes = [line.text for line in lines if not line.is_upright]
    return "\n\n".join(part for part in (_text(upright), *notes) if part)


def _text(lines: Sequence[Line]) -> str:
    rows = _rows(lines)
    parts: list[str] = []
    start = 0
    while start < len(rows):
        end, gutter = _columns(rows[start:])
        block = [line for row in rows[start : start + end] for line in row]
        if gutter is not None:
            left = [line for line in block if line.right <= gutter]
            right = [line for line in block if line.left >= gutter]
            parts += ["\n\n", _text(left), "\n\n", _text(right)]
            start += end
        else:
            parts += [_separator(rows[start - 1], rows[start]) if start else "", _joined(rows[start])]
            start += 1
    return "".join(parts).strip()


def _rows(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines side by side, from the top; the halves of two lines' heights tell whether they are."""
    rows: list[list[Line]] = []
    reach = float("-inf")
    for line in sorted(lines, key=lambda line: line.top + line.bottom):
        middle = (line.top + line.bottom) / 2
        if not rows or middle - line.height / 4 > reach:
            rows.append([])
            reach = float("-inf")
        rows[-1].append(line)
        reach = max(reach, middle + line.height / 4)
    return rows


def _columns(rows: Sequence[Sequence[Line]]) -> tuple[int, float | None]:
    """How many of the first rows stand in columns, and where the gap between the first two of them is."""
    gaps = _gaps(rows[0])
    count = 1
    for row in rows[1:]:
        narrower = _common(gaps, _gaps(row))
        if not narrower:
            break
        gaps, count = narrower, count + 1
    inner = [(right - left, (left + right) / 2) for left, right in gaps if right - left < float("inf")]
    lines = [line for row in rows[:count] for line in row]
    for _, gutter in sorted(inner, reverse=True):
        sides = [line for line in lines if line.right <= gutter], [line for line in lines if line.left >= gutter]
        if all(map(_is_prose, sides)):
            return count, gutter
    return 1, None


def _gaps(row: Sequence[Line]) -> list[tuple[float, float]]:
    """Where nothing stands in a row, its margins included."""
    gaps, reach = [], float("-inf")
    for line in sorted(row, key=lambda line: line.left):
        if line.left > reach:
            gaps.append((reach, line.left))
        reach = max(reach, line.right)
    return [*gaps, (reach, float("inf"))]


def _common(some: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where both have a gap; nothing if what they have in common are the margins alone."""
    both = [(max(a, c), min(b, d)) for a, b in some for c, d in others if max(a, c) < min(b, d)]
    return both if any(right - left < float("inf") for left, right in both) else []


def _is_prose(lines: Sequence[Line]) -> bool:
    wide = median((line.right - line.left) / line.height for line in lines) if lines else 0.0
    return len(lines) >= _LEAST_COLUMN_LINES and wide >= _PROSE


def _joined(row: Sequence[Line]) -> str:
    return " ".join(line.text for line in sorted(row, key=lambda line: line.left))


def _separator(above: Sequence[Line], below: Sequence[Line]) -> str:
    gap = min(line.top for line in below) - max(line.bottom for line in above)
    height = median(line.height for line in (*above, *below))
    return "\n\n" if gap > _PARAGRAPH * height else "\n"
