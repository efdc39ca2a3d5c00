"""Whom a command acts for.

Belongs here: finding people, with an error that says what to do where this command line runs. Does not: the ledger.
"""

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.errors import NotFound
from fltr_pipeline.settings import Settings

EMBEDDED_ADMINISTRATOR = "postgres"
"""The administrator's role on the embedded server, which trusts connections on its own socket."""


def payer_by_email(settings: Settings, ledger: Ledger, email: str) -> Payer:
    """The user of that address with the pot that pays for them.

    Raises:
        NotFound: nobody has it.
    """
    try:
        return ledger.payer_by_email(email)
    except NotFound:
        if settings.production:
            raise
        raise NotFound(
            f"no user has the e-mail address {email!r}: add one with `fltr-pipeline db add-user {email} --credits 100`"
        ) from None
