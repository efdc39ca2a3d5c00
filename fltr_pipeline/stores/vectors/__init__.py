"""Vectors in Milvus: one shared collection for all datasets, searched within one of them.

Belongs here: everything that knows Milvus. Does not: which rows count (the manifest in PostgreSQL does).
"""

from fltr_pipeline.stores.vectors.schema import TEXT_BYTES
from fltr_pipeline.stores.vectors.store import MAX_HITS, CollectionFacts, VectorStore

__all__ = ["MAX_HITS", "TEXT_BYTES", "CollectionFacts", "VectorStore"]
