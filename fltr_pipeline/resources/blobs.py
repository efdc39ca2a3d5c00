"""The raw uploads."""

import dagster as dg

from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.blobs import BlobStore


class BlobsResource(dg.ConfigurableResource[BlobStore]):
    """Vends the blob store (`FLTR_BLOB_URL`, or the embedded stack's folder)."""

    def blobs(self) -> BlobStore:
        """Uploads under `{dataset_id}/{document_id}/{filename}`."""
        return BlobStore(Settings().endpoints.blob_url)
