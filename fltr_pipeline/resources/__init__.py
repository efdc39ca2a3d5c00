"""Dagster resources: each vends one plain object, opened from the settings when an op first asks for it.

Belongs here: the seam between Dagster and everything below, which does not know Dagster. Does not: logic.
Nothing connects, and no secret is read, when definitions are loaded.
"""

from fltr_pipeline.resources.blobs import BlobsResource
from fltr_pipeline.resources.credits import CreditsResource
from fltr_pipeline.resources.embedder import EmbedderResource
from fltr_pipeline.resources.milvus import MilvusResource
from fltr_pipeline.resources.postgres import FltrResource

__all__ = ["BlobsResource", "CreditsResource", "EmbedderResource", "FltrResource", "MilvusResource"]
