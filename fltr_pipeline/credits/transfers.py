"""What happens to one pot in one READ COMMITTED transaction. Two-phase transfers after TigerBeetle's model.

Belongs here: the order of statements within a transaction. Does not: retries, several pots (ledger), SQL (stores.auth).

Rows are inserted first, the balance is changed second: the other order deadlocks against the deletion of a user. What
was really inserted decides what the balance changes by, so every transfer may be repeated.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from fltr_pipeline.credits.entries import (
    Opening,
    check_same,
    close_row,
    grant_row,
    hold_row,
    is_void,
    opening_row,
    outcome_of,
    refund_row,
    void_row,
)
from fltr_pipeline.credits.holds import Close, Closed, CloseState, Hold, HoldState, Payer, Pot
from fltr_pipeline.stores.auth import people, pots, rows
from fltr_pipeline.stores.auth.rows import StoredRow


class DoesNotCover(Exception):
    """The pot, or an API key's limit, doesn't cover what was really inserted: roll back."""


class PotIsGone(Exception):
    """There is no balance to change: roll back."""


def reserve(tx: Connection, pot: Pot, holds: Sequence[Hold], leaving: int, *, known: bool) -> dict[str, HoldState]:
    """Reserve all holds that don't exist yet, or none; tell how the others stand.

    `known`: the pot has its opening row. `leaving`: see Ledger.reserve.

    Raises:
        DoesNotCover: roll back.
        LedgerConflict: a hold of that id has another amount or pot.
    """
    at = rows.utc_now()
    inserted = rows.insert(tx, [hold_row(h) for h in holds], at)
    total = -sum(inserted.values())
    if total:
        _take(tx, pot, total, leaving * len(inserted), at)
        if not known:
            see(tx, pot, -total)
    states = dict.fromkeys(inserted, HoldState.OPEN)
    before = [h for h in holds if h.id not in inserted]
    if before:
        found = rows.by_id(tx, [i for h in before for i in (h.id, h.close_id)])
        states |= {h.id: _state(h, found.get(h.id), found.get(h.close_id)) for h in before}
    return states


def close(tx: Connection, pot: Pot, closes: Sequence[Close], *, pot_gone: bool = False) -> dict[str, Closed]:
    """End each hold once; an earlier close, or a void, stands. `pot_gone`: nothing can be given back.

    Raises:
        PotIsGone: roll back, and call again with `pot_gone`.
        LedgerConflict: a hold of that id has another amount or pot.
    """
    found = rows.by_id(tx, [i for c in closes for i in (c.hold.id, c.hold.close_id)])
    result: dict[str, Closed] = {}
    todo: list[Close] = []
    for c in closes:
        if (earlier := _earlier(c.hold, found)) is not None:
            result[c.hold.id] = earlier
        else:
            todo.append(replace(c, outcome=CloseState.POT_GONE) if pot_gone else c)
    if not todo:
        return result
    inserted = rows.insert(tx, [close_row(c, found[c.hold.id]) for c in todo])
    back = sum(inserted.values())
    if back and not pot_gone and not pots.give(tx, pot.kind, pot.id, back):
        raise PotIsGone
    raced = [c.hold for c in todo if c.hold.close_id not in inserted]
    now = rows.by_id(tx, [h.close_id for h in raced]) if raced else {}
    result |= {h.id: _closed(h, now.get(h.close_id)) for h in raced}
    ours = [c for c in todo if c.hold.close_id in inserted]
    return result | {
        c.hold.id: Closed(c.outcome, c.charged, 0 if pot_gone else c.hold.amount - c.charged) for c in ours
    }


def void(tx: Connection, pot: Pot, holds: Sequence[Hold], reason: str, *, pot_gone: bool = False) -> dict[str, Closed]:
    """Make sure that no hold stands or will: void those that never landed, release the others.

    Raises:
        PotIsGone: roll back, and call again with `pot_gone`.
        LedgerConflict: a hold of that id has another amount or pot.
    """
    voided = rows.insert(tx, [void_row(h, reason) for h in holds])
    landed = [Close(h, 0, CloseState.RELEASED, reason) for h in holds if h.id not in voided]
    closed = close(tx, pot, landed, pot_gone=pot_gone) if landed else {}
    return closed | dict.fromkeys(voided, Closed(CloseState.RELEASED, 0))


def refund(tx: Connection, pot: Pot, holds: Sequence[Hold], reason: str) -> int:
    """Give back what settled holds were charged, once each; returns the credits that went back now.

    Raises:
        PotIsGone: roll back.
        LedgerConflict: a hold of that id has another amount or pot.
    """
    found = rows.by_id(tx, [i for h in holds for i in (h.id, h.close_id)])
    back = []
    for hold in holds:
        earlier = _earlier(hold, found)
        if earlier is not None and earlier.charged > 0:
            back.append(refund_row(hold, found[hold.close_id], reason))
    returned = sum(rows.insert(tx, back).values()) if back else 0
    if returned and not pots.give(tx, pot.kind, pot.id, returned):
        raise PotIsGone
    return returned


def grant(tx: Connection, payer: Payer, row_id: str, amount: int, reason: str, *, known: bool) -> int:
    """Add a bonus, once; returns the new balance.

    Raises:
        PotIsGone: roll back.
    """
    pot = payer.pot
    if rows.insert(tx, [grant_row(row_id, payer, amount, reason)]):
        if not pots.give(tx, pot.kind, pot.id, amount):
            raise PotIsGone
        if not known:
            see(tx, pot, amount)
    left = pots.balances(tx, pot.kind, [pot.id]).get(pot.id)
    if left is None:  # it was deleted since a COMMIT whose answer was lost
        raise PotIsGone
    return left


def see(tx: Connection, pot: Pot, changed: int) -> None:
    """Write the opening row of a pot whose balance this transaction has just `changed`, if it has none.

    The balance's row lock is held, so what the rows add up to can't move either: whoever adds one changes the balance
    in the same transaction. What they don't explain is the opening.
    """
    if rows.by_id(tx, [pot.opening_id]):
        return
    balance = pots.balances(tx, pot.kind, [pot.id])[pot.id]
    explained = rows.sum_of_pot(tx, pot.kind, pot.id)
    owner = people.owner_of(tx, pot.kind, pot.id)
    rows.insert(tx, [opening_row(Opening(pot, owner, balance - changed, balance - explained))])


def _take(tx: Connection, pot: Pot, total: int, leaving: int, at: datetime) -> None:
    """`at`: when the rows say that they were made, which tells the day and the month that a key's limits are for."""
    if not pots.take(tx, pot.kind, pot.id, total, leaving=leaving):
        raise DoesNotCover
    if pot.kind == "api_key":
        # A statement of its own, after the lock on the balance: within one, the sum would be a stale one.
        left = pots.limits(tx, [pot.id], at)[pot.id].left
        if left is not None and left < leaving:
            raise DoesNotCover


def _state(hold: Hold, found: StoredRow | None, found_close: StoredRow | None) -> HoldState:
    if found is None:  # its user was deleted since it was in the way
        return HoldState.PAYER_GONE
    if is_void(found):
        return HoldState.RELEASED
    check_same(hold, found)
    if found_close is None:
        return HoldState.OPEN
    ended = _closed(hold, found_close)
    return HoldState.SETTLED if ended.paid else HoldState(ended.state)


def _earlier(hold: Hold, found: dict[str, StoredRow]) -> Closed | None:
    """How a hold ended already, should it have."""
    row, ended = found.get(hold.id), found.get(hold.close_id)
    if row is None:
        return Closed(CloseState.PAYER_GONE, 0)
    if is_void(row):
        return Closed(CloseState.RELEASED, 0)
    check_same(hold, row)
    return None if ended is None else _closed(hold, ended)


def _closed(hold: Hold, found: StoredRow | None) -> Closed:
    if found is None:  # its user was deleted since it was in the way
        return Closed(CloseState.PAYER_GONE, 0)
    return Closed(outcome_of(found), hold.amount - found.amount)
