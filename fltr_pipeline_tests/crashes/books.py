"""Do the books balance? Asked in plain SQL of both databases, apart from the ledger's own code and its audit.

Belongs here: what one user's rows say, and what is wrong with them. Does not: setting the scene (scenes).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline_tests.world import World

Key = tuple[str, str, int, int]
"""Subject, op, generation, sequence."""

_OF_USER = """
    FROM credit_transactions t CROSS JOIN LATERAL (SELECT t.transaction_metadata::text::json AS m) AS x
    WHERE t.user_id = %s
"""

_HOLDS = f"""
    SELECT resource_id, operation, (m->>'generation')::int AS generation, (m->>'sequence')::int AS sequence,
           count(*) FILTER (WHERE m->>'kind' = 'reserve') AS reserves,
           coalesce(-sum(amount) FILTER (WHERE m->>'kind' = 'reserve'), 0)::int AS reserved,
           count(*) FILTER (WHERE m->>'kind' = 'void') AS voids,
           count(*) FILTER (WHERE m->>'kind' = 'close') AS closes,
           max((m->>'charged')::int) FILTER (WHERE m->>'kind' = 'close') AS charged,
           coalesce(sum(amount) FILTER (WHERE m->>'kind' = 'close'), 0)::int AS returned,
           max(m->>'outcome') FILTER (WHERE m->>'kind' IN ('close', 'void')) AS outcome,
           count(*) FILTER (WHERE m->>'kind' = 'refund') AS refunds,
           coalesce(sum(amount) FILTER (WHERE m->>'kind' = 'refund'), 0)::int AS refunded
    {_OF_USER} AND m->>'kind' IN ('reserve', 'void', 'close', 'refund')
    GROUP BY 1, 2, 3, 4
"""

_POT = f"""
    SELECT coalesce(sum(amount), 0)::int AS explained,
           count(*) FILTER (WHERE m->>'kind' = 'opening') AS openings,
           coalesce(sum(amount) FILTER (WHERE m->>'kind' = 'grant'), 0)::int AS granted,
           max((m->>'opening')::int) FILTER (WHERE m->>'kind' = 'opening') AS opening
    {_OF_USER} AND coalesce(m->>'pot', 'user:' || t.user_id) = %s
"""

_BALANCE = {
    "team": "SELECT credits FROM teams WHERE id = %s",
    "user": "SELECT credits FROM user_credits WHERE user_id = %s",
    "api_key": "SELECT credits FROM api_key_credits WHERE encode(sha256(convert_to(api_key, 'UTF8')), 'hex') = %s",
}

_CHARGES = """
    SELECT c.subject_id, c.op, c.generation, c.sequence, c.amount, c.state, c.charged, d.credits_needed IS NOT NULL
    FROM pipeline.charges c LEFT JOIN pipeline.documents d ON d.document_id = c.subject_id WHERE c.user_id = %s
"""


@dataclass(frozen=True, slots=True)
class HoldLine:
    """What the ledger's rows say about one hold."""

    subject: str
    op: str
    generation: int
    sequence: int
    reserves: int
    reserved: int
    voids: int
    closes: int
    charged: int | None
    returned: int
    outcome: str | None
    refunds: int
    refunded: int

    @property
    def key(self) -> Key:
        return self.subject, self.op, self.generation, self.sequence

    @property
    def open(self) -> bool:
        return self.reserves > 0 and self.closes == 0

    @property
    def net(self) -> int:
        """What it cost in the end."""
        return (self.charged or 0) - self.refunded

    @property
    def state(self) -> str:
        """In the words of `pipeline.charges`."""
        if self.open:
            return "open"
        return "refunded" if self.refunds else str(self.outcome)

    def wrong(self) -> Iterator[str]:
        if self.reserves + self.voids != 1:
            yield f"{self.key}: {self.reserves} holds and {self.voids} voids"
        if self.closes > self.reserves:
            yield f"{self.key}: closed {self.closes} times"
        if self.closes and not 0 <= (self.charged or 0) <= self.reserved:
            yield f"{self.key}: charged {self.charged} of {self.reserved}"
        if self.closes and self.returned != self.reserved - (self.charged or 0):
            yield f"{self.key}: gave {self.returned} of {self.reserved} back, charged {self.charged}"
        if self.refunds > 1 or (self.refunds and self.refunded != self.charged):
            yield f"{self.key}: refunded {self.refunded} in {self.refunds} rows, charged {self.charged}"


@dataclass(frozen=True, slots=True)
class ChargeLine:
    """A row of `pipeline.charges`."""

    subject: str
    op: str
    generation: int
    sequence: int
    amount: int
    state: str
    charged: int | None
    refused: bool
    """Its document awaits credits: there is no hold."""

    @property
    def key(self) -> Key:
        return self.subject, self.op, self.generation, self.sequence


@dataclass(frozen=True, slots=True)
class Books:
    """One user's, who pays from one pot. `opening`: what the pot had before any row of the ledger."""

    balance: int
    explained: int
    openings: int
    granted: int
    opening: int | None
    holds: Sequence[HoldLine]
    charges: Sequence[ChargeLine]

    @classmethod
    def of(cls, world: World, payer: Payer) -> "Books":
        ((balance,),) = world.auth_rows(_BALANCE[payer.pot.kind], payer.pot.id)
        ((explained, openings, granted, opening),) = world.auth_rows(_POT, payer.user_id, payer.pot.name)
        holds = [HoldLine(*row) for row in world.auth_rows(_HOLDS, payer.user_id)]
        charges = [ChargeLine(*row) for row in world.rows(_CHARGES, payer.user_id)]
        return cls(balance, explained, openings, granted, opening, holds, charges)

    @property
    def net(self) -> int:
        """What all work cost."""
        return sum(hold.net for hold in self.holds)

    def wrong(self, opening: int) -> list[str]:
        """What does not balance or is not closed, for a pot that had `opening` credits which no row explains."""
        found = [w for hold in self.holds for w in hold.wrong()]
        found += [f"{hold.key}: still open" for hold in self.holds if hold.open]
        if self.balance != opening + self.explained:
            found.append(f"balance {self.balance} is not {opening} + {self.explained}")
        landed = any(hold.reserves for hold in self.holds)
        if self.openings > 1 or (landed and not self.openings) or self.opening not in {None, opening}:
            found.append(f"{self.openings} opening rows of {self.opening}, the pot had {opening}")
        return found + list(self._disagreeing())

    def _disagreeing(self) -> Iterator[str]:
        holds, now = {hold.key: hold for hold in self.holds}, {charge.key for charge in self.charges}
        for charge in self.charges:
            hold = holds.get(charge.key)
            if hold is None and charge.state == "open" and charge.refused:
                continue
            ledger = (hold.state, hold.net) if hold else None
            if charge.amount and ledger != (charge.state, charge.charged):
                yield f"{charge.key}: charge is {charge.state} at {charge.charged}, the ledger says {ledger}"
        for hold in self.holds:
            if hold.key not in now and hold.net:
                yield f"{hold.key}: {hold.net} credits of no charge's current sequence"
