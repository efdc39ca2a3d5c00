"""Markdown: its source is its text.

The source stays as it was written, front matter included: it reads well, headings and tables show in it, a citation
finds its place in the customer's own file, and a title or tags that stand only in the front matter can be searched.
"""

from fltr_pipeline.text.parse.decode import decode
from fltr_pipeline.text.parse.extraction import Extraction, Format


def extract(data: bytes, filename: str) -> Extraction:
    """The source, as one page."""
    text, encoding = decode(data, filename)
    return Extraction([text], encoding)


FORMAT = Format(kind="markdown", title="Markdown", suffixes=(".md", ".markdown"), extract=extract, is_text=True)
