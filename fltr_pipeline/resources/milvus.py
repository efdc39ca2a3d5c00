"""The vectors."""

import dagster as dg

from fltr_pipeline.pipeline.services import open_vectors
from fltr_pipeline.resources.embedder import EmbedderResource
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.vectors import VectorStore


class MilvusResource(dg.ConfigurableResource[VectorStore]):
    """Vends the collection of the configured model (`FLTR_MILVUS_URI`, or the embedded stack's)."""

    def vectors(self) -> VectorStore:
        """The shared collection, partitioned by dataset; connects when first used."""
        return open_vectors(Settings(), EmbedderResource().model())  # the one whose weights are read already
