"""The specification's migration of `fltr_auth`: credits, total_credits_purchased and team_id leave `users` for a table.

    layout      what the catalogue says            session     transactions, locks, who is in the way
    rights      who owns and may do what           shape       what all that means, and the steps
    uses        what else uses the columns         plan        all of it in one report
    balances    what the rows say                  change      apply and roll back

Belongs here: everything about this one migration. Does not: how it is asked for and shown (`cli.migrate`).
"""

from fltr_pipeline.stores.schema.migration.change import Outcome, apply, rollback
from fltr_pipeline.stores.schema.migration.plan import Plan, plan
from fltr_pipeline.stores.schema.migration.session import Patience, Session
from fltr_pipeline.stores.schema.migration.shape import State

__all__ = ["Outcome", "Patience", "Plan", "Session", "State", "apply", "plan", "rollback"]
