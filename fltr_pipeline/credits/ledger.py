"""The ledger: holds and closes on the web application's own tables.

Belongs here: reserve, close, void, refund, grant and the reads, over several pots, with retries. Does not: what happens
to one pot in one transaction (transfers), which work a hold is for or when it is done (pipeline.billing).

A hold is a row of type `usage` and amount -n; the pot falls by n at once. Its close is a second row whose id derives
from the hold's: type `refund` and amount n - charged when something comes back, else `usage` and 0. Settle, release and
expiry share that id, so the primary key picks one winner, and every call may be repeated. Rows are never updated.
"""

import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Self, TypeVar

from pydantic import SecretStr
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, IntegrityError

from fltr_pipeline.credits import transfers
from fltr_pipeline.credits.entries import open_hold
from fltr_pipeline.credits.holds import Close, Closed, CloseState, Hold, HoldState, Payer, Pot
from fltr_pipeline.credits.statement import Statement, entries
from fltr_pipeline.errors import InvalidAmount, LedgerConflict, NotFound, PayerGone, PotGone, StoreUnavailable
from fltr_pipeline.stores.auth import people, pots, rows
from fltr_pipeline.stores.auth.people import Account, KeyPool
from fltr_pipeline.stores.database import engine_for, transaction

_LOG = logging.getLogger(__name__)
_INT4 = 2**31 - 1
_TRIES = 5
_USERS_PER_READ = 1_000
_FOREIGN_KEY = "23503"
"""SQLSTATE of a row whose user or team does not exist."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Ledger:
    """The `credits` resource's object."""

    engine: Engine
    max_amount: int = 1_000_000
    """Refuse larger single amounts before any SQL."""
    _known: set[Pot] = field(default_factory=set, compare=False, repr=False)
    """Pots that are known to have their opening row."""

    @classmethod
    def at(cls, url: SecretStr) -> Self:
        """The ledger of that database. A pooled connection is not asked whether it stands: what is cut off is repeated.

        Raises:
            ConfigurationError: the URL is not PostgreSQL's.
        """
        return cls(engine_for(url, pre_ping=False))

    def payer(self, user_id: str) -> Payer | None:
        """Who pays for the user: the team in their `user_credits` row, else their own row. None: the user is gone."""
        return self.payers(user_id).get(None)

    def payers(self, user_id: str, api_key_ids: Collection[str] = ()) -> dict[str | None, Payer]:
        """Who pays for a user's uploads, by the digest of the API key that they named (None: no key).

        A key pays from its own pool, where it has one; else the user's payer does. A key of another account is not in
        the answer; if the user is gone, nothing is.
        """

        def run(tx: Connection) -> dict[str | None, Payer]:
            found = people.account(tx, user_id=user_id)
            if found is None:
                return {}
            pools = {p.digest: p for p in people.pools(tx, sorted(api_key_ids))} if api_key_ids else {}
            payers = {key: _payer(found, key, pools.get(key) if key else None) for key in (None, *api_key_ids)}
            return {key: payer for key, payer in payers.items() if payer is not None}

        return self._retried(run)

    def existing_users(self, user_ids: Collection[str]) -> set[str]:
        """Those of the users that exist."""
        ids, found = sorted(user_ids), set[str]()
        for start in range(0, len(ids), _USERS_PER_READ):
            found |= self._retried(partial(people.existing, user_ids=ids[start : start + _USERS_PER_READ]))
        return found

    def payer_by_email(self, email: str) -> Payer:
        """As `payer`, for people.

        Raises:
            NotFound: nobody has that address.
        """
        found = self._retried(lambda tx: people.account(tx, email=email))
        payer = self.payer(found.user_id) if found else None
        if payer is None:
            raise NotFound(f"no user has the e-mail address {email!r} in fltr_auth: sign up in the application first")
        return payer

    def reserve(self, holds: Sequence[Hold], *, leaving: int = 0) -> dict[str, HoldState]:
        """Reserve each hold, or find it as an earlier try left it; returns hold id → state.

        One transaction per pot, pots in a fixed order. Where a pot can't cover all, those are reserved that fit, first
        come first served in the given order. `leaving`: credits that must stay available for each hold reserved now,
        for the next steps of the same work; they are looked at, not held.

        Raises:
            InvalidAmount: not 0 < amount ≤ cap.
            LedgerConflict: a row under a hold's id says something else.
            StoreUnavailable: fltr_auth does not answer.
        """
        for hold in holds:
            self.check_amount(hold.amount, f"{hold.op} of {hold.subject_id}")
        states: dict[str, HoldState] = {}
        for pot, mine in _by_pot(holds).items():
            states |= self._reserve_pot(pot, mine, leaving)
        return states

    def close(self, closes: Sequence[Close]) -> dict[str, Closed]:
        """Settle or release each hold; returns hold id → the close that stands. An earlier close wins.

        Raises:
            InvalidAmount: not 0 ≤ charged ≤ reserved.
            LedgerConflict: a row under a hold's id says something else.
            StoreUnavailable: fltr_auth does not answer.
        """
        for c in closes:
            if not 0 <= c.charged <= c.hold.amount:
                raise InvalidAmount(
                    f"can't charge {c.charged} of {c.hold.amount} reserved for {c.hold.op} of {c.hold.subject_id}"
                )
        by_id = {c.hold.id: c for c in closes}
        closed: dict[str, Closed] = {}
        for pot, mine in _by_pot([c.hold for c in closes]).items():
            closed |= self._into(pot, partial(transfers.close, pot=pot, closes=[by_id[h.id] for h in mine]))
        return closed

    def void(self, holds: Sequence[Hold], *, reason: str) -> dict[str, Closed]:
        """End holds that may never have landed; returns hold id → how it ended. An earlier close wins.

        A hold that did not land never will: its own id is taken by a row of 0. One that did is released.

        Raises:
            LedgerConflict: a row under a hold's id says something else.
            StoreUnavailable: fltr_auth does not answer.
        """
        closed: dict[str, Closed] = {}
        for pot, mine in _by_pot(holds).items():
            todo = mine
            while todo:
                try:
                    closed |= self._into(pot, partial(transfers.void, pot=pot, holds=todo, reason=reason))
                    break
                except IntegrityError as error:
                    there = self._without_the_gone(todo, error)
                    closed |= {h.id: Closed(CloseState.PAYER_GONE, 0) for h in todo if h not in there}
                    if there == todo:
                        closed |= self._release_landed(pot, todo, reason)
                        break
                    todo = there
        return closed

    def refund(self, holds: Sequence[Hold], *, reason: str) -> int:
        """Give back what settled holds were charged, once each; returns the credits that went back now.

        Holds that are open, released or gone are left alone, as are those whose pot is gone.

        Raises:
            LedgerConflict: a row under a hold's id says something else.
            StoreUnavailable: fltr_auth does not answer.
        """
        back = 0
        for pot, mine in _by_pot(holds).items():
            try:
                back += self._raced(partial(transfers.refund, pot=pot, holds=mine, reason=reason))
            except transfers.PotIsGone:
                _LOG.error("%s is gone: what failed work was charged could not be given back", pot.name)
        return back

    def grant(self, payer: Payer, amount: int, *, reason: str) -> int:
        """Add a bonus to the payer's pot; returns the new balance.

        Raises:
            InvalidAmount: not 0 < amount ≤ cap, or more than the balance can hold.
            PayerGone: the user was deleted.
            PotGone: the pot has no balance row.
        """
        self.check_amount(amount, f"a grant to {payer.user_id}")
        row_id, pot = str(uuid.uuid4()), payer.pot
        run = partial(
            transfers.grant, payer=payer, row_id=row_id, amount=amount, reason=reason, known=pot in self._known
        )
        try:
            balance = self._retried(run)
        except LedgerConflict:
            raise InvalidAmount(f"{amount} credits are more than {pot.kind} {pot.id} can hold") from None
        except (transfers.PotIsGone, IntegrityError):
            if self.payer(payer.user_id) is None:
                raise PayerGone(f"user {payer.user_id} does not exist in fltr_auth any more") from None
            raise PotGone(
                f"{pot.name} has no balance row in fltr_auth: the application creates it on sign-up"
            ) from None
        self._known.add(pot)
        return balance

    def spendable(self, wanted: Iterable[Pot]) -> dict[Pot, int]:
        """What a hold can take from each pot now: the balance, or what an API key's limits leave of it."""

        def run(tx: Connection) -> dict[Pot, int]:
            found = _balances(tx, list(wanted))
            keys = [pot.id for pot in found if pot.kind == "api_key"]
            left = {Pot("api_key", i): k.left for i, k in pots.limits(tx, keys, rows.utc_now()).items()} if keys else {}
            limits = {pot: n for pot, n in left.items() if n is not None}
            return {pot: max(0, min(n, limits.get(pot, n))) for pot, n in found.items()}

        return self._retried(run)

    def open_holds(self, before: datetime) -> list[Hold]:
        """Holds without a close that were made before `before` (UTC). Reads the whole ledger.

        Raises:
            StoreUnavailable: fltr_auth does not answer.
        """
        holds, unreadable = self._open(before)
        for error in unreadable.values():
            _LOG.error("%s: `fltr-pipeline credits audit` tells what is wrong", error)
        return holds

    def unreadable_holds(self, before: datetime) -> list[str]:
        """Ids of rows that would be in `open_holds`, had nobody changed them. Reads the whole ledger.

        Raises:
            StoreUnavailable: fltr_auth does not answer.
        """
        return sorted(self._open(before)[1])

    def statement(self, payer: Payer) -> Statement:
        """Everything that the ledger did for the user, netted per hold, in one snapshot."""

        def run(tx: Connection) -> Statement:
            account = people.account(tx, user_id=payer.user_id)
            if account is None:
                raise NotFound(f"user {payer.user_id} does not exist in fltr_auth")
            lines = tuple(entries(rows.of_user(tx, payer.user_id)))
            return Statement(
                user_id=payer.user_id,
                email=account.email,
                pot=payer.pot,
                available=pots.balances(tx, payer.pot.kind, [payer.pot.id]).get(payer.pot.id, 0),
                reserved=sum(e.reserved for e in lines),
                charged=sum(e.charged for e in lines),
                returned=sum(e.returned for e in lines),
                held=sum(e.held for e in lines),
                granted=sum(e.granted for e in lines),
                entries=lines,
            )

        return self._retried(run, isolation="REPEATABLE READ")

    def check_amount(self, amount: int, what: str) -> None:
        """Refuse an amount before any SQL.

        Raises:
            InvalidAmount: not 0 < amount ≤ cap.
        """
        if not 0 < amount <= min(self.max_amount, _INT4):
            raise InvalidAmount(
                f"{amount:,} credits for {what}: an amount must be between 1 and {self.max_amount}; "
                "where a price asks for more, look at FLTR_PRICES__*, or split the document"
            )

    def _open(self, before: datetime) -> tuple[list[Hold], dict[str, LedgerConflict]]:
        """The open holds, and by row id why others can't be read."""
        holds, unreadable = [], {}
        for row in self._retried(partial(rows.open_before, before=before.replace(tzinfo=None))):
            try:
                holds.append(open_hold(row))
            except LedgerConflict as error:
                unreadable[row.id] = error
        return holds, unreadable

    def _reserve_pot(self, pot: Pot, holds: Sequence[Hold], leaving: int) -> dict[str, HoldState]:
        """Reserve what the pot covers; when it can't cover all, look again and take those that fit, in order."""
        wanted = list(holds)
        refused: dict[str, HoldState] = {}
        for left in reversed(range(_TRIES)):
            if not wanted:
                return refused
            run = partial(transfers.reserve, pot=pot, holds=wanted, leaving=leaving, known=pot in self._known)
            try:
                states = self._retried(run)
            except transfers.DoesNotCover:
                available = self.spendable([pot]).get(pot)
                # Others were faster each time: at last only what is there already, which nobody can take.
                wanted, rest = self._fitting(wanted, (available or 0) if left > 1 else 0, leaving)
                why = HoldState.POT_GONE if available is None else HoldState.INSUFFICIENT
                refused |= dict.fromkeys((h.id for h in rest), why)
            except IntegrityError as error:
                there = self._without_the_gone(wanted, error)
                refused |= {h.id: HoldState.PAYER_GONE for h in wanted if h not in there}
                if there == wanted:
                    there, rest = self._fitting(wanted, 0, leaving)
                    refused |= dict.fromkeys((h.id for h in rest), HoldState.POT_GONE)
                wanted = there
            else:
                if HoldState.OPEN in states.values():
                    self._known.add(pot)
                return refused | states
        return refused | dict.fromkeys((h.id for h in wanted), HoldState.INSUFFICIENT)

    def _fitting(self, holds: Sequence[Hold], available: int, leaving: int) -> tuple[list[Hold], list[Hold]]:
        """Each in order that what is left of `available` covers, and the rest; what is there already costs nothing."""
        paid = set(self._retried(partial(rows.by_id, ids=[h.id for h in holds])))
        fits: list[Hold] = []
        rest: list[Hold] = []
        for hold in holds:
            cost = 0 if hold.id in paid else hold.amount + leaving
            if cost <= available:
                available -= cost
                paid.add(hold.id)
                fits.append(hold)
            else:
                rest.append(hold)
        return fits, rest

    def _release_landed(self, pot: Pot, holds: Sequence[Hold], reason: str) -> dict[str, Closed]:
        """The team is gone: what landed is ended; what did not can't any more."""
        closes = [Close(h, 0, CloseState.RELEASED, reason) for h in holds]
        closed = self._into(pot, partial(transfers.close, pot=pot, closes=closes))
        never = {i for i, c in closed.items() if c.state is CloseState.PAYER_GONE}
        return closed | dict.fromkeys(never, Closed(CloseState.POT_GONE, 0))

    def _without_the_gone(self, holds: Sequence[Hold], error: IntegrityError) -> list[Hold]:
        """Those whose user exists; all of them, if it is the team that is gone."""
        if getattr(error.orig, "sqlstate", None) != _FOREIGN_KEY:
            raise error
        users = self._retried(partial(people.existing, user_ids=sorted({h.payer.user_id for h in holds})))
        return [h for h in holds if h.payer.user_id in users]

    def _into(self, pot: Pot, run: Callable[..., dict[str, Closed]]) -> dict[str, Closed]:
        """Run a transfer that may give something back; where the pot is gone, it ends the holds all the same."""
        try:
            return self._raced(run)
        except transfers.PotIsGone:
            _LOG.error("%s is gone: what its holds leave could not be given back", pot.name)
            return self._raced(partial(run, pot_gone=True))

    def _raced(self, run: Callable[[Connection], _T]) -> _T:
        """Run a transfer on rows that it has read; again, if their user or team was deleted since."""
        for _ in range(_TRIES - 1):
            with suppress(IntegrityError):
                return self._retried(run)
        return self._retried(run)

    def _retried(self, run: Callable[[Connection], _T], *, isolation: str | None = None) -> _T:
        """Run one transaction, again after a deadlock, serialization failure or cut connection."""
        engine = self.engine if isolation is None else self.engine.execution_options(isolation_level=isolation)
        for attempt in range(_TRIES):
            try:
                with transaction(engine) as tx:
                    return run(tx)
            except DataError as error:
                raise LedgerConflict(
                    f"fltr_auth can't hold a value that a transfer needs ({str(error.orig).splitlines()[0]}): a "
                    "balance at the limit of its column, or a changed row; `fltr-pipeline credits audit` tells more"
                ) from error
            except StoreUnavailable:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")


def _payer(account: Account, key: str | None, pool: KeyPool | None) -> Payer | None:
    """None: the key is another account's."""
    if pool is not None:
        shared = pool.team_id is not None and pool.team_id == account.team_id
        mine = pool.user_id == account.user_id or shared
        return Payer(account.user_id, Pot("api_key", pool.digest), key) if mine else None
    team = account.team_id
    return Payer(account.user_id, Pot("team", team) if team else Pot("user", account.user_id), key)


def _balances(tx: Connection, wanted: Sequence[Pot]) -> dict[Pot, int]:
    ids: dict[str, list[str]] = {}
    for pot in wanted:
        ids.setdefault(pot.kind, []).append(pot.id)
    return {Pot(kind, i): n for kind, mine in ids.items() for i, n in pots.balances(tx, kind, mine).items()}


def _by_pot(holds: Sequence[Hold]) -> dict[Pot, list[Hold]]:
    grouped: dict[Pot, list[Hold]] = {}
    for hold in holds:
        grouped.setdefault(hold.payer.pot, []).append(hold)
    return dict(sorted(grouped.items()))
