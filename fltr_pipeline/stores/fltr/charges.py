"""Charges: what an op on a generation costs, written before the ledger is touched.

Belongs here: `pipeline.charges`. Does not: the ledger's own rows (stores.auth).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from fltr_pipeline.models import Op
from fltr_pipeline.stores.database import recordset


@dataclass(frozen=True, slots=True)
class Charge:
    """One op on one generation of a document (or of a dataset, for `dataset_setup`). Amounts in credits."""

    subject_id: str
    op: Op
    generation: int
    dataset_id: str
    amount: int
    user_id: str
    pot_kind: str
    pot_id: str
    price_version: str
    unit_price: int
    job_id: str | None
    run_id: str | None = None
    api_key_id: str | None = None
    sequence: int = 1
    state: str = "open"
    """open, settled, released, refunding, refunded, payer_gone, pot_gone or, for people to look at, conflict."""
    charged: int | None = None

    @property
    def key(self) -> tuple[str, Op, int]:
        """What is charged once: an op on a generation of a subject."""
        return self.subject_id, self.op, self.generation

    @property
    def paid(self) -> bool:
        """Whether its work is paid for, by a pot that may be gone since."""
        return self.state == "settled" or (self.state == "pot_gone" and bool(self.charged))


# The first writer's amount, pot and price stand; a retry reads them back and uses them as they are.
_WRITE = text("""
    INSERT INTO pipeline.charges
        (subject_id, op, generation, dataset_id, amount, user_id, pot_kind, pot_id, price_version, unit_price, job_id,
         run_id, api_key_id)
    SELECT r.subject_id, r.op, r.generation, r.dataset_id, r.amount, r.user_id, r.pot_kind, r.pot_id, r.price_version,
           r.unit_price, r.job_id, r.run_id, r.api_key_id
    FROM json_populate_recordset(NULL::pipeline.charges, :rows) AS r
    ORDER BY r.subject_id
    ON CONFLICT (subject_id, op, generation) DO NOTHING
""")

# A set-up has one charge for ever: one that ended unpaid is asked of whoever pays now.
_ASK_ANEW = text("""
    UPDATE pipeline.charges c
    SET sequence = c.sequence + 1, state = 'open', charged = NULL, created_at = now(), closed_at = NULL,
        amount = r.amount, user_id = r.user_id, pot_kind = r.pot_kind, pot_id = r.pot_id, run_id = r.run_id,
        price_version = r.price_version, unit_price = r.unit_price
    FROM json_populate_recordset(NULL::pipeline.charges, :rows) AS r
    WHERE c.subject_id = r.subject_id AND c.op = r.op AND c.generation = r.generation
      AND c.op = 'dataset_setup' AND c.state IN ('released', 'payer_gone', 'pot_gone')
      AND NOT (c.state = 'pot_gone' AND coalesce(c.charged, 0) > 0)
""")

_READ = text("""
    SELECT c.* FROM pipeline.charges c
    JOIN json_to_recordset(:rows) AS r(subject_id text, op text, generation int) USING (subject_id, op, generation)
""")

# The fence is held for as long as a charge is written: whoever takes the document over waits, and finds it.
_FENCED = text("""
    SELECT p.document_id FROM pipeline.documents p
    JOIN json_to_recordset(:rows) AS f(subject_id text, fence bigint)
      ON f.subject_id = p.document_id AND f.fence = p.fence
    ORDER BY p.document_id
    FOR SHARE OF p
""")

# Several charges are locked in one order first, else two who change them wait for each other, and each is looked at as
# it then is.
_NEXT_SEQUENCE = text("""
    WITH locked AS MATERIALIZED (
        SELECT subject_id, op, generation
        FROM json_to_recordset(:rows) AS r(subject_id text, op text, generation int, sequence int)
        JOIN pipeline.charges c USING (subject_id, op, generation, sequence)
        WHERE c.state <> 'refunding'
        ORDER BY subject_id, op, generation FOR UPDATE OF c
    )
    UPDATE pipeline.charges c
    SET sequence = c.sequence + 1, state = 'open', charged = NULL, created_at = now(), closed_at = NULL
    FROM locked l WHERE c.subject_id = l.subject_id AND c.op = l.op AND c.generation = l.generation
""")

_CLOSE = text("""
    WITH locked AS MATERIALIZED (
        SELECT subject_id, op, generation, r.state, r.charged
        FROM json_to_recordset(:rows) AS r(subject_id text, op text, generation int, sequence int, was text, state text,
                                           charged int)
        JOIN pipeline.charges c USING (subject_id, op, generation, sequence)
        WHERE c.state = r.was AND c.state IN ('open', 'refunding')
        ORDER BY subject_id, op, generation FOR UPDATE OF c
    )
    UPDATE pipeline.charges c SET state = l.state, charged = l.charged, closed_at = now()
    FROM locked l WHERE c.subject_id = l.subject_id AND c.op = l.op AND c.generation = l.generation
""")

# Index: pipeline.charges_open. Abandoned: the document is gone, has ended, or is at work on another generation. A
# dataset's set-up: no run came back to it.
_ABANDONED = text("""
    SELECT c.*, coalesce(CASE c.op WHEN 'dataset_setup' THEN s.dataset_id IS NOT NULL
                                   ELSE p.live_generation = c.generation END, false) AS delivered
    FROM pipeline.charges c
    LEFT JOIN pipeline.documents p ON p.document_id = c.subject_id
    LEFT JOIN pipeline.datasets s ON s.dataset_id = c.subject_id
    WHERE c.state = 'open' AND c.subject_id > :after AND CASE c.op
        WHEN 'dataset_setup' THEN c.created_at < now() - make_interval(secs => :age)
        ELSE p.document_id IS NULL OR p.stage IS NULL OR p.generation <> c.generation END
    ORDER BY c.subject_id, c.op, c.generation
    LIMIT :limit
""")

# Index: pipeline.charges_open.
_OPEN = text("SELECT * FROM pipeline.charges WHERE state = 'open' ORDER BY subject_id, op, generation")

# The primary key's first column. What is open may be settled in the ledger, by a worker who has not recorded it, or may
# be until it is voided there.
_MARK_REFUNDING = text("""
    WITH locked AS MATERIALIZED (
        SELECT subject_id, c.op, generation
        FROM json_to_recordset(:rows) AS r(subject_id text, generation int)
        JOIN pipeline.charges c USING (subject_id, generation)
        WHERE c.state = 'open' OR c.state = 'settled' AND c.charged > 0
        ORDER BY subject_id, c.op, generation FOR UPDATE OF c
    )
    UPDATE pipeline.charges c SET state = 'refunding', closed_at = coalesce(c.closed_at, now())
    FROM locked l WHERE c.subject_id = l.subject_id AND c.op = l.op AND c.generation = l.generation
""")

# Index: pipeline.charges_refunding.
_REFUNDING = text("""
    SELECT c.* FROM pipeline.charges c WHERE c.state = 'refunding' AND c.subject_id > :after
    ORDER BY c.subject_id, c.op, c.generation LIMIT :limit
""")

# The primary key's first column.
_OF_GENERATIONS = text("""
    SELECT c.* FROM pipeline.charges c
    JOIN json_to_recordset(:rows) AS r(subject_id text, generation int) USING (subject_id, generation)
    ORDER BY c.subject_id, c.op
""")


def write_charges(tx: Connection, charges: Sequence[Charge], fences: Mapping[str, int]) -> list[Charge]:
    """Write the charges that don't exist yet, under the fences, and return all as they stand in the database.

    A charge whose document's fence was lost is not written and, if no earlier attempt wrote it, not returned.
    """
    rows = [
        {
            "subject_id": c.subject_id, "op": c.op.value, "generation": c.generation, "dataset_id": c.dataset_id,
            "amount": c.amount, "user_id": c.user_id, "pot_kind": c.pot_kind, "pot_id": c.pot_id,
            "price_version": c.price_version, "unit_price": c.unit_price, "job_id": c.job_id, "run_id": c.run_id,
            "api_key_id": c.api_key_id,
        }
        for c in charges
    ]  # fmt: skip
    lost = _lost(tx, charges, fences)
    tx.execute(_WRITE, {"rows": recordset(r for r in rows if r["subject_id"] not in lost)})
    if any(c.op is Op.DATASET_SETUP for c in charges):
        tx.execute(_ASK_ANEW, {"rows": recordset(rows)})
    wanted = {"rows": recordset(rows)}
    found = {r["subject_id"]: _charge(dict(r)) for r in tx.execute(_READ, wanted).mappings()}
    return [found[c.subject_id] for c in charges if c.subject_id in found]


def next_sequence(tx: Connection, charges: Sequence[Charge], fences: Mapping[str, int]) -> list[Charge]:
    """Reopen ended charges under the next sequence (a new hold id); returns them as they now stand, in order.

    Those whose document's fence was lost are left alone and not returned; datasets have no fence. What is still to be
    refunded is left as it is.
    """
    lost = _lost(tx, charges, fences)
    held = [c for c in charges if c.subject_id not in lost]
    tx.execute(_NEXT_SEQUENCE, {"rows": _ids(held)})
    found = {c.key: c for c in (_charge(dict(r)) for r in tx.execute(_READ, {"rows": _ids(held)}).mappings())}
    return [found[c.key] for c in held if c.key in found]


def close_charges(tx: Connection, closed: Sequence[tuple[Charge, str, int]]) -> None:
    """Record how open charges ended, or refunding ones: (charge, its new state, credits charged).

    One that is no longer as it was read is left to whoever changed it.
    """
    rows = recordset(
        {
            "subject_id": c.subject_id, "op": c.op.value, "generation": c.generation, "sequence": c.sequence,
            "was": c.state, "state": state, "charged": charged,
        }
        for c, state, charged in closed
    )  # fmt: skip
    tx.execute(_CLOSE, {"rows": rows})


def mark_refunding(tx: Connection, generations: Sequence[tuple[str, int]]) -> None:
    """Decide, where the attempt is ended, that what its ops were charged is given back: a sweep sees to it."""
    rows = recordset({"subject_id": i, "generation": n} for i, n in generations)
    tx.execute(_MARK_REFUNDING, {"rows": rows})


def refunding_charges(tx: Connection, limit: int | None = None, after: str = "") -> list[Charge]:
    """Charges that are to be given back, of what is behind that id; all, or the first `limit`."""
    return [_charge(dict(r)) for r in tx.execute(_REFUNDING, {"limit": limit, "after": after}).mappings()]


def charges_of(tx: Connection, generations: Sequence[tuple[str, int]]) -> list[Charge]:
    """All charges of these (document, generation)s."""
    rows = recordset({"subject_id": i, "generation": n} for i, n in generations)
    return [_charge(dict(r)) for r in tx.execute(_OF_GENERATIONS, {"rows": rows}).mappings()]


@dataclass(frozen=True, slots=True)
class Abandoned:
    """An open charge whose work nobody will finish; `delivered`: its result is there all the same."""

    charge: Charge
    delivered: bool


def abandoned_charges(tx: Connection, *, age: float, limit: int, after: str = "") -> list[Abandoned]:
    """Open charges of documents that are gone or moved on, and of set-ups begun more than `age` seconds ago.

    `after`: only of what is behind that id.
    """
    found = tx.execute(_ABANDONED, {"age": age, "limit": limit, "after": after}).mappings()
    return [Abandoned(_charge(dict(r)), r["delivered"]) for r in found]


def open_charges(tx: Connection) -> list[Charge]:
    """All charges that are not closed, whoever's work they are for."""
    return [_charge(dict(r)) for r in tx.execute(_OPEN).mappings()]


def _lost(tx: Connection, charges: Sequence[Charge], fences: Mapping[str, int]) -> set[str]:
    """Documents whose fence was lost; of the others it is held until the transaction ends."""
    fenced = sorted({c.subject_id for c in charges} & fences.keys())
    lock = recordset({"subject_id": i, "fence": fences[i]} for i in fenced)
    return set(fenced) - set(tx.execute(_FENCED, {"rows": lock}).scalars())


def _ids(charges: Sequence[Charge]) -> str:
    return recordset(
        {"subject_id": c.subject_id, "op": c.op.value, "generation": c.generation, "sequence": c.sequence}
        for c in charges
    )


def _charge(row: dict[str, object]) -> Charge:
    names = Charge.__dataclass_fields__
    values = {k: v for k, v in row.items() if k in names} | {"op": Op(str(row["op"]))}
    return Charge(**values)  # type: ignore[arg-type]


# The primary keys' first columns.
_IN_HAND = text("""
    SELECT c.* FROM pipeline.charges c
    JOIN json_to_recordset(:rows) AS r(subject_id text, generation int) USING (subject_id, generation)
    JOIN pipeline.documents p ON p.document_id = c.subject_id AND p.generation = c.generation
    WHERE c.state = 'open' AND p.stage IS NOT NULL AND p.lease_until > now()
""")


def in_hand(tx: Connection, generations: Sequence[tuple[str, int]]) -> list[Charge]:
    """The open charges of these (document, generation)s, of those that a living worker is at."""
    rows = recordset({"subject_id": i, "generation": n} for i, n in generations)
    return [_charge(dict(r)) for r in tx.execute(_IN_HAND, {"rows": rows}).mappings()]


# Reads all charges: for an audit that found a balance wrong.
_PAYERS_OF_POTS = text("""
    SELECT DISTINCT c.pot_kind, c.pot_id, c.user_id FROM pipeline.charges c
    JOIN json_to_recordset(:rows) AS r(pot_kind text, pot_id text) USING (pot_kind, pot_id)
""")


def payers_of_pots(tx: Connection, pots: Sequence[tuple[str, str]]) -> dict[tuple[str, str], set[str]]:
    """The users whose work each of these pots (kind, id) was to pay for."""
    users: dict[tuple[str, str], set[str]] = {}
    for row in tx.execute(_PAYERS_OF_POTS, {"rows": recordset({"pot_kind": k, "pot_id": i} for k, i in pots)}):
        users.setdefault((row.pot_kind, row.pot_id), set()).add(row.user_id)
    return users
