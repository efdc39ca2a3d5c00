"""The engine alone: a model that costs nothing, and parsing without a process for it.

Belongs here: what stands in for the two parts that write nowhere, so that a thousand deaths take minutes. Does not:
stores; those are real.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import Self

from fltr_pipeline.errors import DocumentError
from fltr_pipeline.models import ParsedDocument
from fltr_pipeline.text.model import DEFAULT_MODEL, EmbeddingModel
from fltr_pipeline.text.parse import parse
from fltr_pipeline.text.parse.pool import Item, ParserPool


class DigestModel(EmbeddingModel):
    """A text's vector comes from its digest: equal texts find each other. The tokenizer is the default model's."""

    def __init__(self) -> None:
        super().__init__(DEFAULT_MODEL, batch_size=1, threads=0)

    @cached_property
    def dimension(self) -> int:
        return 8

    @cached_property
    def fingerprint(self) -> str:
        return "digests of texts"

    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        return [_unit(hashlib.sha256(text.encode()).digest()[: self.dimension]) for text in texts]


def _unit(numbers: bytes) -> list[float]:
    centred = [n - 127.5 for n in numbers]
    length = math.hypot(*centred)
    return [n / length for n in centred]


class ParserHere(ParserPool):
    """Parses in this process, one document after the other."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def parse_all(
        self, items: Iterable[Item], on_page: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[str, ParsedDocument | DocumentError]]:
        for document_id, filename, data in items:
            try:
                yield document_id, parse(data() if callable(data) else data, filename)
            except DocumentError as error:
                yield document_id, error
