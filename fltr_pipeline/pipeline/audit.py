"""The audit as operators run it: the ledger, with what `fltr` knows of who paid.

Belongs here: joining the two databases. Does not: the verdict (credits.audit).
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Engine

from fltr_pipeline.credits.audit import Audit, run_audit
from fltr_pipeline.credits.holds import Hold, Pot
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.pipeline.billing import hold_of
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import charges

OVERDUE = timedelta(hours=1)
"""How long a hold may be open that no living worker has in hand: until the sweep after its lease, and a full pass."""


def audit_ledger(fltr: Engine, ledger: Ledger, *, overdue: timedelta = OVERDUE) -> Audit:
    """Audit all of the ledger; see `credits.audit.run_audit`.

    Raises:
        StoreUnavailable: one of the databases does not answer.
    """

    def payers_of(pots: Sequence[Pot]) -> dict[Pot, set[str]]:
        with transaction(fltr) as tx:
            found = charges.payers_of_pots(tx, [(pot.kind, pot.id) for pot in pots])
        return {Pot(kind, pot_id): users for (kind, pot_id), users in found.items()}

    def in_hand(holds: Sequence[Hold]) -> set[str]:
        with transaction(fltr) as tx:
            found = charges.in_hand(tx, [(h.subject_id, h.generation) for h in holds])
        return {hold_of(charge).id for charge in found}

    return run_audit(ledger.engine, overdue=overdue, payers_of=payers_of, in_hand=in_hand)
