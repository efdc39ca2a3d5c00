"""What the rows of `fltr_auth` say: totals before and after, and the rows that need a decision or forbid the migration.

Belongs here: queries over `users` and `user_credits`. Does not: changing either (`shape` has the steps).
"""

from dataclasses import dataclass

from psycopg import sql

from fltr_pipeline.stores.auth.rows import HOLD, KIND
from fltr_pipeline.stores.schema.connection import Connection
from fltr_pipeline.stores.schema.migration.layout import Layout

# What `users` has. A column that is gone reads as NULL, and is not compared; ids as text, whatever their types.
_OLD = sql.SQL("""
WITH old AS (
    SELECT u.id::text AS user_id, {credits}::bigint AS credits, {total_credits_purchased}::bigint AS purchased,
           {team_id}::text AS named_team, t.id::text AS team_id
    FROM public.users u LEFT JOIN public.teams t ON t.id::text = {team_id}::text
)
""")

_TOTALS = sql.SQL("""
SELECT count(*), coalesce(sum(credits), 0), coalesce(sum(purchased), 0), count(*) FILTER (WHERE credits IS NULL),
       count(*) FILTER (WHERE purchased IS NULL), count(*) FILTER (WHERE credits < 0 OR purchased < 0)
FROM old
""")

_OVERFLOWS = sql.SQL("""
SELECT user_id FROM old
WHERE credits NOT BETWEEN -2147483648 AND 2147483647 OR purchased NOT BETWEEN -2147483648 AND 2147483647
ORDER BY 1
""")

_ORPHANS = sql.SQL("""
SELECT user_id, named_team FROM old WHERE named_team IS NOT NULL AND team_id IS NULL ORDER BY 1
""")

_ACCOUNTS = """
SELECT count(*), coalesce(sum(credits), 0), coalesce(sum(total_credits_purchased), 0) FROM public.user_credits
"""

_WITHOUT_ACCOUNT = sql.SQL("""
SELECT user_id FROM old
WHERE NOT EXISTS (SELECT FROM public.user_credits c WHERE c.user_id::text = old.user_id) ORDER BY 1
""")

_DIFFERING = sql.SQL("""
SELECT c.user_id::text, old.user_id IS NOT NULL, coalesce(old.credits, 0), c.credits, coalesce(old.purchased, 0),
       c.total_credits_purchased, old.team_id, c.team_id::text
FROM public.user_credits c LEFT JOIN old ON old.user_id = c.user_id::text
WHERE old.user_id IS NULL OR (%(credits)s AND c.credits <> coalesce(old.credits, 0))
   OR (%(total_credits_purchased)s AND c.total_credits_purchased <> coalesce(old.purchased, 0))
   OR (%(team_id)s AND c.team_id::text IS DISTINCT FROM old.team_id)
ORDER BY 1
""")

# Reads the whole ledger: a hold is open while no row of kind `close` names it.
_OPEN_HOLDS = f"""
SELECT count(*), coalesce(-sum(r.amount), 0)::bigint FROM public.credit_transactions r
WHERE r.type::text = 'usage' AND {KIND.format(t="r")} = 'reserve'
  AND NOT EXISTS (SELECT FROM public.credit_transactions c
                  WHERE {KIND.format(t="c")} = 'close' AND {HOLD.format(t="c")} = r.id::text)
"""  # noqa: S608 - of constants


@dataclass(frozen=True, slots=True)
class Totals:
    """Rows and what they add up to; None for a column that is gone."""

    rows: int
    credits: int | None
    purchased: int | None

    def equal(self, other: "Totals") -> bool:
        """Whether nothing differs that both have."""
        pairs = ((self.credits, other.credits), (self.purchased, other.purchased))
        return self.rows == other.rows and all(a is None or b is None or a == b for a, b in pairs)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A user whose team does not exist."""

    user_id: str
    team_id: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of `user_credits` that says something else than `users`."""

    user_id: str
    known: bool
    """Whether there is such a user."""
    credits_in_users: int
    credits_in_user_credits: int
    purchased_in_users: int
    purchased_in_user_credits: int
    team_in_users: str | None
    """None also for a team that does not exist."""
    team_in_user_credits: str | None


@dataclass(frozen=True, slots=True)
class Balances:
    """The rows of both tables. Lists are complete, so that what is decided about them is decided about all."""

    users: Totals
    accounts: Totals | None
    """What `user_credits` has; None without that table."""
    null_credits: int
    null_purchased: int
    negative: int
    """Users with a number below 0; they are copied as they are."""
    overflows: tuple[str, ...]
    """Users with a number beyond int4."""
    orphans: tuple[Orphan, ...]
    without_account: tuple[str, ...]
    """Users without a row in `user_credits`."""
    differing: tuple[Difference, ...]


def read(connection: Connection, layout: Layout) -> Balances:
    """Reads all rows, each query once through; `users` and `teams` must be as `shape` wants them."""
    present = {name: name in layout.present for name in ("credits", "total_credits_purchased", "team_id")}
    old = _OLD.format(**{name: sql.Identifier("u", name) if there else sql.NULL for name, there in present.items()})
    rows, credits, purchased, null_credits, null_purchased, negative = connection.execute(old + _TOTALS).fetchall()[0]
    accounts = layout.table("user_credits") is not None
    return Balances(
        users=Totals(
            rows,
            int(credits) if present["credits"] else None,
            int(purchased) if present["total_credits_purchased"] else None,
        ),
        accounts=_accounts(connection) if accounts else None,
        null_credits=null_credits if present["credits"] else 0,
        null_purchased=null_purchased if present["total_credits_purchased"] else 0,
        negative=negative,
        overflows=tuple(user for (user,) in connection.execute(old + _OVERFLOWS)),
        orphans=tuple(Orphan(*row) for row in connection.execute(old + _ORPHANS)),
        without_account=tuple(u for (u,) in connection.execute(old + _WITHOUT_ACCOUNT)) if accounts else (),
        differing=tuple(Difference(*r) for r in connection.execute(old + _DIFFERING, present)) if accounts else (),
    )


def open_holds(connection: Connection, layout: Layout) -> tuple[int, int]:
    """How many holds of the pipeline's are open, and the credits in them; none without a ledger."""
    if not {"id", "type", "amount", "transaction_metadata"} <= layout.types("credit_transactions").keys():
        return 0, 0
    holds, credits = connection.execute(_OPEN_HOLDS.encode()).fetchall()[0]
    return int(holds), int(credits)


def _accounts(connection: Connection) -> Totals:
    rows, credits, purchased = connection.execute(_ACCOUNTS).fetchall()[0]
    return Totals(rows, int(credits), int(purchased))
