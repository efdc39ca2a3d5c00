"""What must be true of the ledger after a storm, by SQL and arithmetic that share nothing with the ledger's own.

Belongs here: reading `fltr_auth` as its owner, and assertions. Does not: making the storm (storm).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import psycopg
from psycopg.rows import class_row

from fltr_pipeline.credits.holds import Pot
from fltr_pipeline_tests.faults.storm import MOST, Beside, Call, Storm, Told

_CLOSED = {"settled", "released", "pot_gone"}

# The equation: what a pot has is what it had without any row, and the sum of the rows attributed to it.
_BALANCES = b"""
    WITH pots AS (
        SELECT 'user:' || user_id AS pot, credits FROM user_credits
        UNION ALL SELECT 'team:' || id, credits FROM teams
        UNION ALL SELECT 'api_key:' || encode(sha256(api_key::bytea), 'hex'), credits FROM api_key_credits
    ), attributed AS (
        SELECT coalesce(transaction_metadata->>'pot', 'team:' || team_id, 'user:' || user_id) AS pot,
               type, amount, transaction_metadata AS m
        FROM credit_transactions
    )
    SELECT pot, credits, coalesce(sum(amount), 0) AS total,
           coalesce(sum(amount) FILTER (WHERE type = 'purchase'), 0) AS purchased,
           coalesce(sum(amount) FILTER (WHERE m->>'kind' = 'grant'), 0) AS granted,
           coalesce(sum(amount) FILTER (WHERE type = 'bonus' AND m->>'kind' IS NULL), 0) AS began_with,
           coalesce(sum((m->>'charged')::int) FILTER (WHERE m->>'kind' = 'close'), 0) AS charged,
           coalesce(sum(amount) FILTER (WHERE m->>'kind' = 'refund'), 0) AS refunded,
           min((m->>'opening')::int) AS opening
    FROM pots LEFT JOIN attributed USING (pot) GROUP BY pot, credits
"""

_HOLDS = b"""
    SELECT h.id::text, h.transaction_metadata->>'pot' AS pot, h.transaction_metadata->>'kind' AS kind,
           -h.amount AS amount, count(c.id)::int AS closes, min(c.amount) AS back, min(c.type) AS close_type,
           min(c.transaction_metadata->>'outcome') AS outcome,
           min((c.transaction_metadata->>'charged')::int) AS charged,
           bool_and(c.transaction_metadata->>'pot' = h.transaction_metadata->>'pot') AS same_pot,
           count(r.id)::int AS refunds, min(r.amount) AS refunded, h.created_at::date AS day
    FROM credit_transactions h
    LEFT JOIN credit_transactions c
      ON c.transaction_metadata->>'hold_id' = h.id::text AND c.transaction_metadata->>'kind' = 'close'
    LEFT JOIN credit_transactions r
      ON r.transaction_metadata->>'hold_id' = h.id::text AND r.transaction_metadata->>'kind' = 'refund'
    WHERE h.transaction_metadata->>'kind' IN ('reserve', 'void')
    GROUP BY h.id
"""

_WITHOUT_HOLD = b"""
    SELECT count(*)::int FROM credit_transactions c
    LEFT JOIN credit_transactions h ON h.id::text = c.transaction_metadata->>'hold_id'
    WHERE c.transaction_metadata->>'kind' IN ('close', 'refund') AND h.id IS NULL
"""


@dataclass(frozen=True)
class Balance:
    """A pot that is still there."""

    pot: str
    credits: int
    total: int
    purchased: int
    granted: int
    began_with: int
    charged: int
    refunded: int
    opening: int | None


@dataclass(frozen=True)
class Stored:
    """A hold and its close, as the rows have them."""

    id: str
    pot: str
    kind: str
    amount: int
    closes: int
    back: int | None
    close_type: str | None
    outcome: str | None
    charged: int | None
    same_pot: bool | None
    refunds: int
    refunded: int | None
    day: date
    """On which it was reserved, by UTC."""

    @property
    def state(self) -> str:
        """What a caller who closes it now has to be told."""
        return "released" if self.kind == "void" else self.outcome or "open"

    @property
    def state_to_reserve(self) -> str:
        """What a caller who reserves it now has to be told: what a pot that is gone has paid is paid."""
        return "settled" if self.state == "pot_gone" and self.charged else self.state


def check(storm: Storm, told: Sequence[Told], beside: Beside, *, undisturbed: bool) -> None:
    """Everything at once. `undisturbed`: no COMMIT's answer was lost, so that totals told are exact."""
    with psycopg.connect(storm.admin_url) as connection:
        # One snapshot; and joined by hash, whatever the statistics of a table that is seconds old say.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SET enable_nestloop = off")
        balances = {b.pot: b for b in connection.cursor(row_factory=class_row(Balance)).execute(_BALANCES)}
        holds = {h.id: h for h in connection.cursor(row_factory=class_row(Stored)).execute(_HOLDS)}
        assert connection.execute("SELECT pots, credits FROM overdrafts").fetchall() == []
        assert connection.execute(_WITHOUT_HOLD).fetchall() == [(0,)]
    gone = {pot.name for pot in beside.deleted}
    assert gone.isdisjoint(balances)
    for hold in holds.values():
        _check_hold(hold)
    _check_balances(storm, balances, holds.values())
    _check_totals(balances, holds.values(), told, beside, undisturbed=undisturbed)
    _check_told(storm, holds, [*told, *beside.told], gone)
    _check_limits(storm, holds.values())


def _check_hold(hold: Stored) -> None:
    """At most one close and one refund; 0 ≤ charged ≤ reserved; what came back is the rest."""
    assert hold.closes <= 1, hold
    assert hold.refunds <= 1, hold
    if hold.kind == "void":
        assert (hold.amount, hold.closes, hold.refunds) == (0, 0, 0), hold
        return
    assert hold.amount > 0, hold
    if hold.charged is not None:
        assert hold.same_pot, hold
        assert hold.outcome in _CLOSED, hold
        assert 0 <= hold.charged <= hold.amount, hold
        assert hold.back == hold.amount - hold.charged, hold
        assert hold.close_type == ("refund" if hold.back else "usage"), hold
        assert hold.charged == 0 or hold.outcome != "released", hold
    if hold.refunds:
        assert hold.outcome == "settled", hold
        assert hold.refunded == hold.charged, hold


def _check_balances(storm: Storm, balances: Mapping[str, Balance], holds: Iterable[Stored]) -> None:
    """Two equations per pot: from all amounts, and from what they stand for."""
    held: dict[str, int] = defaultdict(int)
    for hold in holds:
        held[hold.pot] += hold.amount if hold.state == "open" else 0
    unexplained = {f.payer.pot.name: f.unexplained for f in storm.funds}
    for b in balances.values():
        opening = unexplained.get(b.pot, 0)
        assert b.credits >= 0, b
        assert b.credits == opening + b.total, b
        assert b.opening in {None, opening}, b
        came, went = opening + b.began_with + b.purchased + b.granted, b.charged - b.refunded
        assert b.credits == came - went - held[b.pot], b


def _check_totals(
    balances: Mapping[str, Balance], holds: Iterable[Stored], told: Iterable[Told], beside: Beside, *, undisturbed: bool
) -> None:
    """What was told to have been bought, granted and refunded is what the rows have."""
    for pot, bought in beside.purchased.items():
        assert pot.name not in balances or balances[pot.name].purchased == bought
    granted: dict[Pot, int] = defaultdict(int)
    refunded = 0
    for t in told:
        refunded += t.credits if t.call is Call.REFUND else 0
        granted[t.pot] += t.credits if t.call is Call.GRANT else 0
    there = {pot: balances[pot.name].granted for pot in granted if pot.name in balances}
    returned = sum(h.refunded or 0 for h in holds if h.pot in balances)
    if undisturbed:
        assert there == {pot: granted[pot] for pot in there}
        assert returned == refunded
    assert all(n >= granted[pot] for pot, n in there.items())
    assert returned >= refunded


def _check_told(storm: Storm, holds: Mapping[str, Stored], told: Iterable[Told], gone: set[str]) -> None:
    """Each answer agrees with the rows, and with all answers that came before its call."""
    endless = {f.payer.pot for f in storm.funds if f.endless}
    answers: dict[str, list[Told]] = defaultdict(list)
    for t in told:
        if t.call is Call.GRANT:
            assert t.state in {"granted", "unknown"} or t.pot.name in gone, t
        elif t.call is not Call.REFUND:
            answers[t.hold_id].append(t)
            assert t.pot.name in gone or t.state != "pot_gone", t
            assert t.pot not in endless or t.state != "insufficient", t
            # Of a user who lives, only a close says so: of what never landed.
            assert t.call is Call.CLOSE or t.pot.name in gone or t.state != "payer_gone", t
    for hold_id, mine in answers.items():
        name = mine[0].pot.name
        if name not in gone or hold_id in holds:
            for t in mine:
                _check_answer(t, holds.get(hold_id))
        if name not in gone:
            _check_order(mine)


def _check_answer(told: Told, stored: Stored | None) -> None:
    if told.state in {"insufficient", "payer_gone"}:
        return
    if told.state == "pot_gone":  # nothing was or can be reserved; or it is closed, one way or another
        assert told.call is Call.RESERVE or stored is None or stored.state != "open", (told, stored)
        return
    assert stored is not None, told
    if told.state == "open":
        assert stored.kind == "reserve", (told, stored)
    else:
        right = stored.state_to_reserve if told.call is Call.RESERVE else stored.state
        assert told.state == right, (told, stored)
    if told.call is not Call.RESERVE:
        assert told.credits == stored.charged or told.state == "released", (told, stored)


def _check_order(mine: Sequence[Told]) -> None:
    """A hold is absent, then open, then closed, then nothing else; nobody's call sees less than an earlier one's."""
    seen_open = _first_end(mine, lambda t: t.state == "open")
    seen_closed = _first_end(mine, lambda t: t.state in _CLOSED)
    for t in mine:
        if t.started > seen_closed:
            assert t.state in _CLOSED, (t, mine)
        if t.started > seen_open:
            assert t.state in {"open", *_CLOSED}, (t, mine)


def _first_end(mine: Iterable[Told], which: Callable[[Told], bool]) -> float:
    return min((t.ended for t in mine if which(t)), default=float("inf"))


def _check_limits(storm: Storm, holds: Iterable[Stored]) -> None:
    """A key never used more in a day than it may; where more was asked and nothing came back, nearly all of it."""
    used: dict[str, dict[date, int]] = defaultdict(lambda: defaultdict(int))
    for hold in holds:
        used[hold.pot][hold.day] += hold.amount - (hold.back or 0) - (hold.refunded or 0)
    for fund in storm.funds:
        if fund.daily_limit is not None:
            by_day = used[fund.payer.pot.name].values()
            assert all(0 <= n <= fund.daily_limit for n in by_day), by_day
            assert fund.closes or max(by_day) > fund.daily_limit - MOST, by_day


def pots_with_open_holds(storm: Storm) -> set[str]:
    """Names of pots of which something is still held."""
    with psycopg.connect(storm.admin_url) as connection:
        holds = connection.cursor(row_factory=class_row(Stored)).execute(_HOLDS).fetchall()
    return {h.pot for h in holds if h.state == "open"}
