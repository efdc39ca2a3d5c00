"""Plain text: its form feeds are its page breaks."""

from fltr_pipeline.models import PAGE_BREAK
from fltr_pipeline.text.parse.decode import decode
from fltr_pipeline.text.parse.extraction import Extraction, Format


def extract(data: bytes, filename: str) -> Extraction:
    """The text as it is, in whatever encoding."""
    text, encoding = decode(data, filename)
    return Extraction(text.split(PAGE_BREAK), encoding)


FORMAT = Format(kind="text", title="plain text", suffixes=(".txt", ".text", ".log"), extract=extract, is_text=True)
