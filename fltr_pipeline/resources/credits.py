"""The credits that pay for each op."""

import dagster as dg
from sqlalchemy import Engine

from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.settings import Settings


class CreditsResource(dg.ConfigurableResource[Ledger]):
    """Vends the ledger on `fltr_auth`; every asset op reserves through it before its work and settles after."""

    def ledger(self) -> Ledger:
        """Holds and closes on `credit_transactions`."""
        return Ledger.at(Settings().endpoints.auth_database_url)

    def billing(self, fltr: Engine) -> Billing:
        """The cycle of an op: charge in `fltr`, hold in `fltr_auth`, work, close."""
        settings = Settings()
        return Billing(fltr, self.ledger(), settings.prices, settings.charging)
