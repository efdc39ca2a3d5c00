"""The things that a use case needs, opened from the settings; everything connects when first used."""

from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Engine

from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.blobs import BlobStore
from fltr_pipeline.stores.database import engine_for
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline.text.fingerprint import attempt_fingerprint, extractor_fingerprint, pipeline_fingerprint
from fltr_pipeline.text.model import EmbeddingModel


@dataclass(frozen=True)
class Services:
    """Both databases, the ledger, the vectors, the uploads and the model."""

    settings: Settings
    fltr: Engine
    ledger: Ledger
    vectors: VectorStore
    blobs: BlobStore
    model: EmbeddingModel

    @cached_property
    def fingerprint(self) -> str:
        """Of the configuration that makes a generation; another one means stale."""
        return pipeline_fingerprint(self.settings, self.model)

    @cached_property
    def extractor(self) -> str:
        """Fingerprint of what makes a file's text."""
        return extractor_fingerprint(self.settings)

    @cached_property
    def tried_with(self) -> str:
        """Fingerprint of what an attempt's outcome depends on but the bytes: another one, and poison is tried again."""
        return attempt_fingerprint(self.settings, self.model)


def open_services(settings: Settings) -> Services:
    """Everything, from the settings.

    Raises:
        ConfigurationError: nothing is configured and no embedded stack runs.
    """
    endpoints = settings.endpoints
    model = open_model(settings)
    return Services(
        settings=settings,
        fltr=engine_for(endpoints.database_url),
        ledger=Ledger.at(endpoints.auth_database_url),
        vectors=open_vectors(settings, model),
        blobs=BlobStore(endpoints.blob_url),
        model=model,
    )


def open_model(settings: Settings) -> EmbeddingModel:
    """The embedding model; its weights are read when it first encodes."""
    return EmbeddingModel(
        settings.embedding_model, batch_size=settings.embedding_batch_size, threads=settings.embedding_threads
    )


def open_vectors(settings: Settings, model: EmbeddingModel) -> VectorStore:
    """The collection of this model: vectors of two models never share one."""
    return VectorStore(
        settings.endpoints.milvus_uri,
        settings.milvus_token,
        collection=collection_of(model),
        dimension=model.dimension,
    )


def collection_of(model: EmbeddingModel) -> str:
    """The name of the model's collection."""
    return f"fltr_chunks_{model.fingerprint[:12]}"
