r"""JSON: an outline of its names and values, one a line, since braces, quotes and `\u00e9` are no words.

Belongs here: JSON and JSON Lines to text. Does not: what merely resembles JSON; it is kept as it stands.
"""

import json
import re

from fltr_pipeline.text.parse.decode import decode
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.sample import Sample

_BEGINNING = re.compile(r"[\[{]\s*(?:[\"\[{\]}]|-?\d|true|false|null)")
_INDENT = "  "
_MOST_INDENT = 20


def extract(data: bytes, filename: str) -> Extraction:
    """The outline as one page.

    Raises:
        RecursionError: it is nested too deep.
    """
    text, encoding = decode(data, filename)
    values = _values(text)
    if values is None:
        return Extraction([text], encoding)
    lines: list[str] = []
    for value in values:
        _outline(value, 0, lines)
    return Extraction(["\n".join(lines)], encoding)


def _values(text: str) -> list[object] | None:
    """The value, or one for each line; None if it is neither."""
    try:
        return [json.loads(text)]
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        return None


def _outline(value: object, depth: int, lines: list[str]) -> None:
    """A list's items begin with `-`, an object's with their names; what is nested stands below, indented."""
    indent = _INDENT * min(depth, _MOST_INDENT)
    if isinstance(value, dict):
        named = [(f"{key}:", inner) for key, inner in value.items()]
    elif isinstance(value, list):
        named = [("-", inner) for inner in value]
    else:
        lines.append(indent + _scalar(value))
        return
    for name, inner in named:
        if isinstance(inner, dict | list):
            lines.append(indent + name)
            _outline(inner, depth + 1, lines)
        else:
            lines.append(f"{indent}{name} {_scalar(inner)}")


def _scalar(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _recognises(sample: Sample) -> bool:
    return _BEGINNING.match(sample.head) is not None and sample.data.rstrip(b" \t\r\n\x00").endswith((b"]", b"}"))


FORMAT = Format(
    kind="json",
    title="JSON",
    suffixes=(".json", ".jsonl", ".ndjson", ".geojson", ".ipynb"),
    extract=extract,
    recognises=_recognises,
    is_text=True,
)
