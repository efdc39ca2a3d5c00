"""The `fltr` database."""

import dagster as dg
from sqlalchemy import Engine

from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.database import engine_for


class FltrResource(dg.ConfigurableResource[Engine]):
    """Vends the engine of the `fltr` database (`FLTR_DATABASE_URL`, or the embedded stack's)."""

    def engine(self) -> Engine:
        """The process's engine; connects when first used."""
        return engine_for(Settings().endpoints.database_url)
