"""The words that all rooms share: statuses, ops and the values that cross a boundary.

Belongs here: frozen dataclasses and enumerations that more than one package uses. Does not: anything with I/O.
"""

from dataclasses import dataclass
from enum import StrEnum

PAGE_BREAK = "\f"
"""Separates pages in a document's text, as pdftotext does; a character offset therefore gives the page."""


class DocumentStatus(StrEnum):
    """`documents.status`."""

    UPLOADED = "uploaded"
    PROCESSING = "processing"
    READY = "ready"
    FAILED = "failed"
    AWAITING_CREDITS = "awaiting_credits"


class JobStatus(StrEnum):
    """`processing_jobs.status`; one job row per attempt."""

    QUEUED = "queued"
    RUNNING = "running"
    INDEXED = "indexed"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


class Op(StrEnum):
    """What can be charged; the values are `credit_transactions.operation`."""

    DATASET_SETUP = "dataset_setup"
    DOCUMENT_EXTRACT = "document_extract"
    DOCUMENT_PLAN = "document_plan"
    DOCUMENT_EMBED = "document_embed"


class Stage(StrEnum):
    """The next piece of work of a document in flight."""

    EXTRACT = "extract"
    PLAN = "plan"
    EMBED = "embed"


class ReprocessMode(StrEnum):
    """Which documents of a dataset to do again; each mode includes the ones before it.

    The names are lower case because Dagster's launchpad takes an enumeration's names, not its values.
    """

    pending = "pending"
    failed = "failed"
    stale = "stale"
    all = "all"


@dataclass(frozen=True, slots=True)
class Recognition:
    """A page whose text was read from its picture (OCR)."""

    page: int
    """Its number, from 1."""
    confidence: float
    """The engine's own, mean over the characters: from 0 to 1."""


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """A document's text. `text` separates its `pages` pages by `PAGE_BREAK`; it holds no NUL and no lone surrogate."""

    text: str
    pages: int
    kind: str
    """The format that it was read as: pdf, docx, html, text."""
    engine: str
    """What produced the text, with its version: `pypdfium2 5.15.2`, `lxml 6.1.3`, `utf-8`."""
    blank_pages: tuple[int, ...] = ()
    """1-based numbers of the pages without text."""
    recognised: tuple[Recognition, ...] = ()
    """The pages whose text is OCR's."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice of a document's text: `text == document_text[start:end]`, offsets in characters (code points)."""

    ordinal: int
    """0-based position in the document."""
    page: int
    """1-based page of `start`."""
    start: int
    end: int
    tokens: int
    """In the model's own tokenizer, special tokens included."""
    text: str


@dataclass(frozen=True, slots=True)
class VectorRow:
    """One row of the collection: what does not change with the chunk's position."""

    key: str
    dataset_id: str
    document_id: str
    text: str
    vector: list[float]
    """L2-normalised."""


@dataclass(frozen=True, slots=True)
class VectorHit:
    """A search hit as the vector store knows it; the manifest decides whether it counts."""

    key: str
    document_id: str
    score: float
