"""Small vectors for tests of the vector store.

Belongs here: rows of them, a search, and which servers a test runs on. Does not: servers (milvus_lite, milvus_server).
"""

import uuid

import pytest

from fltr_pipeline.models import VectorRow
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests import milvus_server

DIMENSION = 4
ON_EACH_MILVUS = pytest.mark.parametrize(
    "milvus_kind", ["lite", "server"] if milvus_server.RUNS_HERE else ["lite"], indirect=True
)
"""An integration test runs on Milvus Lite, and on a Milvus server where there is one for this machine."""


def new_name() -> str:
    return f"t_{uuid.uuid4().hex}"


def row(
    key: str, dataset: str = "ds", text: str = "text", vector: tuple[float, ...] = (1, 0, 0, 0), document: str = "doc"
) -> VectorRow:
    return VectorRow(key, dataset, document, text, list(vector))


def dense(store: VectorStore, dataset: str, *vector: float, k: int = 10) -> list[str]:
    return [hit.key for hit in store.search(dataset, vector=vector, text=None, k=k)]
