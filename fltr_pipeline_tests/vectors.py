"""Small vectors for tests of the vector store.

Belongs here: rows of them, and a search. Does not: servers (milvus_lite).
"""

import uuid

from fltr_pipeline.models import VectorRow
from fltr_pipeline.stores.vectors import VectorStore

DIMENSION = 4


def new_name() -> str:
    return f"t_{uuid.uuid4().hex}"


def row(
    key: str, dataset: str = "ds", text: str = "text", vector: tuple[float, ...] = (1, 0, 0, 0), document: str = "doc"
) -> VectorRow:
    return VectorRow(key, dataset, document, text, list(vector))


def dense(store: VectorStore, dataset: str, *vector: float, k: int = 10) -> list[str]:
    return [hit.key for hit in store.search(dataset, vector=vector, text=None, k=k)]
