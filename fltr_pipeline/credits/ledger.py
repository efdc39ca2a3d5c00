"""The ledger: holds and closes on the web application's own tables. Two-phase transfers after TigerBeetle's model.

Belongs here: reserve, settle, release, grant, statement; each a READ COMMITTED transaction per pot. Does not: which
work a hold is for, or when it is done (pipeline.billing).

A hold is a row of type `usage` and amount -n; the pot falls by n at once. Its close is a second row whose id derives
from the hold's: type `refund` and amount n - charged when something comes back, else `usage` and 0. Settle and release
share that id, so the primary key picks one winner, and every call may be repeated. Rows are never updated or deleted.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, IntegrityError

from fltr_pipeline.credits.holds import (
    METADATA_VERSION,
    Close,
    Closed,
    CloseState,
    Hold,
    HoldState,
    Payer,
    Pot,
    close_row,
    hold_row,
    outcome_of,
    refund_row,
)
from fltr_pipeline.credits.statement import Statement, entries
from fltr_pipeline.errors import InvalidAmount, NotFound, PotGone, StoreUnavailable
from fltr_pipeline.stores import auth
from fltr_pipeline.stores.database import transaction

_LOG = logging.getLogger(__name__)
_INT4 = 2**31 - 1
_TRIES = 5
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Ledger:
    """The `credits` resource's object."""

    engine: Engine
    max_amount: int = 1_000_000
    """Refuse larger single amounts before any SQL."""

    def payer(self, user_id: str) -> Payer | None:
        """Who pays for the user: the team in their `user_credits` row, else their own row. None: the user is gone."""
        found = self._retried(lambda tx: auth.account(tx, user_id=user_id))
        if found is None:
            return None
        return Payer(found.user_id, Pot("team", found.team_id) if found.team_id else Pot("user", found.user_id))

    def payer_by_email(self, email: str) -> Payer:
        """As `payer`, for people.

        Raises:
            NotFound: nobody has that address.
        """
        found = self._retried(lambda tx: auth.account(tx, email=email))
        if found is None:
            raise NotFound(f"no user has the e-mail address {email!r} in fltr_auth: sign up in the application first")
        payer = self.payer(found.user_id)
        if payer is None:
            raise NotFound(f"the user {email!r} was deleted a moment ago")
        return payer

    def reserve(self, holds: Sequence[Hold], *, leaving: int = 0) -> dict[str, HoldState]:
        """Reserve each hold, or find it as an earlier try left it; returns hold id → state.

        One transaction per pot, pots in a fixed order. Where a pot can't cover all, those are reserved that fit, first
        come first served in the given order. `leaving`: credits that must stay available for each hold reserved now,
        for the next steps of the same work; they are looked at, not held.

        Raises:
            InvalidAmount: not 0 < amount ≤ cap.
            StoreUnavailable: fltr_auth does not answer.
        """
        for hold in holds:
            self._check_amount(hold.amount, f"{hold.op} of {hold.subject_id}")
        states: dict[str, HoldState] = {}
        for pot, mine in _by_pot(holds).items():
            states |= self._reserve_pot(pot, mine, leaving)
        return states

    def close(self, closes: Sequence[Close]) -> dict[str, Closed]:
        """Settle or release each hold; returns hold id → the close that stands. An earlier close wins.

        Raises:
            InvalidAmount: not 0 ≤ charged ≤ reserved.
            StoreUnavailable: fltr_auth does not answer.
        """
        for close in closes:
            if not 0 <= close.charged <= close.hold.amount:
                raise InvalidAmount(
                    f"can't charge {close.charged} of {close.hold.amount} reserved for {close.hold.op} "
                    f"of {close.hold.subject_id}"
                )
        closed: dict[str, Closed] = {}
        for pot, mine in _by_pot([c.hold for c in closes]).items():
            ids = {h.id for h in mine}
            closed |= self._retried(partial(_close_pot, pot=pot, closes=[c for c in closes if c.hold.id in ids]))
        return closed

    def refund(self, holds: Sequence[Hold], *, reason: str) -> int:
        """Give back what settled holds were charged, once each; returns the credits that went back now.

        Holds that are open, released or gone are left alone.

        Raises:
            StoreUnavailable: fltr_auth does not answer.
        """
        return sum(
            self._retried(partial(_refund_pot, pot=pot, holds=mine, reason=reason))
            for pot, mine in _by_pot(holds).items()
        )

    def grant(self, payer: Payer, amount: int, *, reason: str) -> int:
        """Add a bonus to the payer's pot; returns the new balance.

        Raises:
            InvalidAmount: not 0 < amount ≤ cap, or more than the balance can hold.
            PotGone: the pot has no balance row.
        """
        self._check_amount(amount, f"a grant to {payer.user_id}")
        row = auth.LedgerRow(
            id=str(uuid.uuid4()), user_id=payer.user_id, team_id=payer.team_id, amount=amount, type="bonus",
            operation="grant", resource_id=payer.pot.id,
            metadata={"version": METADATA_VERSION, "kind": "grant", "pot": payer.pot.name, "reason": reason},
        )  # fmt: skip

        def run(tx: Connection) -> int:
            auth.insert(tx, [row])
            if not auth.give(tx, payer.pot.kind, payer.pot.id, amount):
                raise PotGone(
                    f"{payer.pot.name} has no balance row in fltr_auth: the application creates it on sign-up"
                )
            return auth.balances(tx, payer.pot.kind, [payer.pot.id])[payer.pot.id]

        try:
            return self._retried(run)
        except DataError:
            raise InvalidAmount(f"{amount} credits are more than {payer.pot.kind} {payer.pot.id} can hold") from None

    def balances(self, pots: Iterable[Pot]) -> dict[Pot, int]:
        """What each pot has available now; nothing for pots that don't exist."""
        wanted: dict[str, list[str]] = {}
        for pot in pots:
            wanted.setdefault(pot.kind, []).append(pot.id)

        def run(tx: Connection) -> dict[Pot, int]:
            return {Pot(k, i): n for k, ids in wanted.items() for i, n in auth.balances(tx, k, ids).items()}

        return self._retried(run)

    def statement(self, payer: Payer) -> Statement:
        """Everything that the ledger did for the user, netted per hold, in one snapshot."""

        def run(tx: Connection) -> Statement:
            account = auth.account(tx, user_id=payer.user_id)
            if account is None:
                raise NotFound(f"user {payer.user_id} does not exist in fltr_auth")
            lines = tuple(entries(auth.rows_of_user(tx, payer.user_id)))
            return Statement(
                user_id=payer.user_id,
                email=account.email,
                pot=payer.pot,
                available=auth.balances(tx, payer.pot.kind, [payer.pot.id]).get(payer.pot.id, 0),
                reserved=sum(e.reserved for e in lines),
                charged=sum(e.charged for e in lines),
                returned=sum(e.returned for e in lines),
                held=sum(e.held for e in lines),
                granted=sum(e.granted for e in lines),
                entries=lines,
            )

        return self._retried(run, isolation="REPEATABLE READ")

    def _check_amount(self, amount: int, what: str) -> None:
        if not 0 < amount <= min(self.max_amount, _INT4):
            raise InvalidAmount(f"{amount} credits for {what}: an amount must be between 1 and {self.max_amount}")

    def _reserve_pot(self, pot: Pot, holds: Sequence[Hold], leaving: int) -> dict[str, HoldState]:
        """Reserve what the pot covers; when it can't cover all, look again and take those that fit, in order."""
        wanted = list(holds)
        refused: dict[str, HoldState] = {}
        for _ in range(_TRIES):
            try:
                states = self._retried(partial(_reserve_or_roll_back, pot=pot, holds=wanted, leaving=leaving))
            except _DoesNotCover:
                available = self.balances([pot]).get(pot)
                if available is None:
                    return refused | {h.id: HoldState.POT_GONE for h in wanted}
                existing = self._retried(partial(auth.rows, ids=[h.id for h in wanted]))
                wanted, rest = _fitting(wanted, available, existing, leaving)
                refused |= {h.id: HoldState.INSUFFICIENT for h in rest}
            except IntegrityError:
                # The only constraints an insert can break are the foreign keys to users and teams.
                gone = HoldState.PAYER_GONE if self.payer(holds[0].payer.user_id) is None else HoldState.POT_GONE
                return refused | {h.id: gone for h in wanted}
            else:
                return refused | states
        return refused | {h.id: HoldState.INSUFFICIENT for h in wanted}

    def _retried(self, run: Callable[[Connection], _T], *, isolation: str | None = None) -> _T:
        """Run one transaction, again after a deadlock, serialization failure or cut connection."""
        engine = self.engine if isolation is None else self.engine.execution_options(isolation_level=isolation)
        for attempt in range(_TRIES):
            try:
                with transaction(engine) as tx:
                    return run(tx)
            except StoreUnavailable:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")


class _DoesNotCover(Exception):
    """The pot doesn't cover what was really inserted."""


def _by_pot(holds: Sequence[Hold]) -> dict[Pot, list[Hold]]:
    grouped: dict[Pot, list[Hold]] = {}
    for hold in holds:
        grouped.setdefault(hold.payer.pot, []).append(hold)
    return dict(sorted(grouped.items()))


def _reserve_or_roll_back(tx: Connection, pot: Pot, holds: Sequence[Hold], leaving: int) -> dict[str, HoldState]:
    """Insert first, balance second: the other order deadlocks against a user's deletion."""
    if not holds:
        return {}
    inserted = auth.insert(tx, [hold_row(h) for h in holds])
    total = -sum(inserted.values())
    if total and not auth.take(tx, pot.kind, pot.id, total, leaving=leaving * len(inserted)):
        raise _DoesNotCover
    states = dict.fromkeys(inserted, HoldState.OPEN)
    before = [h for h in holds if h.id not in inserted]
    closes = auth.rows(tx, [h.close_id for h in before]) if before else {}
    for hold in before:
        close = closes.get(hold.close_id)
        states[hold.id] = HoldState.OPEN if close is None else HoldState(outcome_of(close))
    return states


def _fitting(
    holds: Sequence[Hold], available: int, existing: Mapping[str, object], leaving: int
) -> tuple[list[Hold], list[Hold]]:
    """Each hold in order that what is left of `available` covers; those that exist already cost nothing more."""
    fits: list[Hold] = []
    rest: list[Hold] = []
    for hold in holds:
        cost = 0 if hold.id in existing else hold.amount + leaving
        if cost <= available:
            available -= cost
            fits.append(hold)
        else:
            rest.append(hold)
    return fits, rest


def _close_pot(tx: Connection, pot: Pot, closes: Sequence[Close]) -> dict[str, Closed]:
    holds = auth.rows(tx, [c.hold.id for c in closes])
    there = [c for c in closes if c.hold.id in holds]
    result = {c.hold.id: Closed(CloseState.PAYER_GONE, 0) for c in closes if c.hold.id not in holds}
    try:
        inserted = auth.insert(tx, [close_row(c, holds[c.hold.id].team_id) for c in there])
    except IntegrityError as error:
        raise StoreUnavailable(
            "a payer was deleted while their hold was being closed; it is looked at again"
        ) from error
    back = sum(inserted.values())
    pot_there = not back or auth.give(tx, pot.kind, pot.id, back)
    if not pot_there:
        _LOG.error("%s is gone: %d credits of closed holds could not be returned", pot.name, back)
    earlier = auth.rows(tx, [c.hold.close_id for c in there if c.hold.close_id not in inserted])
    for close in there:
        found = earlier.get(close.hold.close_id)
        if found is not None:
            result[close.hold.id] = Closed(outcome_of(found), close.hold.amount - found.amount)
        else:
            result[close.hold.id] = Closed(close.outcome if pot_there else CloseState.POT_GONE, close.charged)
    return result


def _refund_pot(tx: Connection, pot: Pot, holds: Sequence[Hold], reason: str) -> int:
    closes = auth.rows(tx, [h.close_id for h in holds])
    charged = {h.id: h.amount - closes[h.close_id].amount for h in holds if h.close_id in closes}
    rows = [refund_row(h, charged[h.id], closes[h.close_id].team_id, reason) for h in holds if charged.get(h.id, 0) > 0]
    back = sum(auth.insert(tx, rows).values()) if rows else 0
    if back and not auth.give(tx, pot.kind, pot.id, back):
        _LOG.error("%s is gone: %d credits of failed work could not be given back", pot.name, back)
    return back
