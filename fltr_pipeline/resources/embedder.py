"""The embedding model."""

import functools

import dagster as dg

from fltr_pipeline.pipeline.services import open_model
from fltr_pipeline.settings import Settings
from fltr_pipeline.text.model import EmbeddingModel


@functools.cache
def _model(settings_key: tuple[str, int, int]) -> EmbeddingModel:
    name, batch_size, threads = settings_key
    return open_model(Settings(embedding_model=name, embedding_batch_size=batch_size, embedding_threads=threads))


class EmbedderResource(dg.ConfigurableResource[EmbeddingModel]):
    """Vends the sentence-transformers model (`FLTR_EMBEDDING_MODEL`); its weights are loaded when it first encodes."""

    def model(self) -> EmbeddingModel:
        """One model per process."""
        settings = Settings()
        return _model((settings.embedding_model, settings.embedding_batch_size, settings.embedding_threads))
