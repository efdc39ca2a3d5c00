"""Tables as text: comma, semicolon, tab or bar between the fields, a line per row.

Belongs here: finding the delimiter, undoing the quotes. Does not: guessing what the columns mean.
"""

import csv
import io
import re
from collections import Counter

from fltr_pipeline.text.parse.decode import decode
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.lines import row

_DELIMITERS = ",;\t|"
_SAMPLE_LINES = 50
_EXCEL = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
"""A first line that tells Excel the delimiter."""


def extract(data: bytes, filename: str) -> Extraction:
    """The rows as one page; a file without any delimiter, or with broken quotes, as it stands."""
    text, encoding = decode(data, filename)
    told = _EXCEL.match(text)
    if told:
        text = text[told.end() :]
    delimiter = told[1] if told else _delimiter(text)
    if delimiter is None:
        return Extraction([text], encoding)
    csv.field_size_limit(len(text) + 1)
    try:
        rows = [row(fields) for fields in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)]
    except csv.Error:
        return Extraction([text], encoding)
    return Extraction(["\n".join(line for line in rows if line)], encoding)


def _delimiter(text: str) -> str | None:
    """The one that most lines have equally often."""
    lines = [line for line in text.split("\n", _SAMPLE_LINES)[:_SAMPLE_LINES] if line.strip()]
    best: tuple[int, str] | None = None
    for delimiter in _DELIMITERS:
        counts = Counter(line.count(delimiter) for line in lines if delimiter in line)
        if counts and (lines_alike := counts.most_common(1)[0][1]) > (best[0] if best else 0):
            best = lines_alike, delimiter
    return best[1] if best else None


FORMAT = Format(
    kind="csv",
    title="CSV tables",
    suffixes=(".csv", ".tsv", ".psv", ".tab"),
    extract=extract,
    is_text=True,
)
