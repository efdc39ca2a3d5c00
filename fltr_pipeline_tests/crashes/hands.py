"""What a worker works with, opened in whatever process it is, from addresses that travel to it.

Belongs here: one worker's engines, ledger and billing. Does not: what it does with them (scenes).
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.settings import Prices, Settings
from fltr_pipeline.stores.blobs import BlobStore
from fltr_pipeline.stores.database import engine_for
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.crashes.engine import DigestModel
from fltr_pipeline_tests.world import World

COLLECTION = "fltr_crashes"

PRICES = Prices(dataset_setup=2, plan=1, embed_tokens=1)
"""Each op costs something, and embedding a credit per token."""

CHUNK_TOKENS = 16
"""A sentence is a chunk."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the stores of a world are."""

    fltr: str
    auth: str
    milvus: str
    blobs: Path

    @classmethod
    def of(cls, world: World) -> "Place":
        """The least-privilege role in `fltr_auth`, as everywhere."""
        return cls(world.fltr_admin, world.environment["FLTR_AUTH_DATABASE_URL"], world.milvus_uri, world.blobs)


@dataclass(frozen=True, slots=True)
class Hands:
    """One worker's."""

    name: str
    services: Services
    billing: Billing

    @classmethod
    def at(cls, place: Place, name: str) -> "Hands":
        """`name`: by which the servers know its sessions. Everything connects when first used."""
        settings, model = Settings(prices=PRICES, chunk_tokens=CHUNK_TOKENS), DigestModel()
        fltr, auth = (engine_for(SecretStr(f"{url}&application_name={name}")) for url in (place.fltr, place.auth))
        vectors = VectorStore(place.milvus, None, collection=COLLECTION, dimension=model.dimension)
        services = Services(settings, fltr, Ledger(auth), vectors, BlobStore(str(place.blobs)), model)
        return cls(name, services, Billing(fltr, services.ledger, settings.prices, settings.charging))

    def close(self) -> None:
        """Give the connections back."""
        self.services.fltr.dispose()
        self.services.ledger.engine.dispose()
