"""Reading the whole ledger in one snapshot: what an audit needs, as a stream.

Belongs here: queries over all rows and all balances, and what all holds on a pot add up to. Does not: a verdict
(credits.audit).

Whatever other programs wrote as metadata, even text that is no JSON, is only ever matched as text in SQL. An API key
that a row names by itself leaves the database as its digest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Connection, Engine, text

from fltr_pipeline.stores.auth.rows import DIGESTS, HOLD, KEY_DIGEST, KIND, POT, StoredRow, stored
from fltr_pipeline.stores.database import id_array, transaction

_FETCHED = 2000
"""Rows in memory at a time."""


@dataclass(frozen=True, slots=True)
class ScannedRow:
    """A row, and the pot that it moves (`kind:id`)."""

    row: StoredRow
    pot: str


_METADATA = "t.transaction_metadata::text"
_KIND, _HOLD = (field.format(t="t") for field in (KIND, HOLD))

_ROWS = f"""
    SELECT t.id::text, t.user_id::text, t.team_id::text, coalesce(k.digest, d.digest) AS api_key_id, t.amount,
           t.type::text, t.operation, t.resource_id::text, t.created_at::timestamp, {_METADATA} AS metadata,
           {POT} AS pot, coalesce({_HOLD}, t.id::text) COLLATE "C" AS entry
    FROM credit_transactions t
    LEFT JOIN ({DIGESTS}) k ON k.api_key = t.api_key_id::text
    LEFT JOIN ({DIGESTS}) d ON d.digest = t.api_key_id::text
"""  # noqa: S608 - of constants

_BY_HOLD = text(f"{_ROWS} ORDER BY entry, t.id")

_OPENINGS = text(f"{_ROWS} WHERE t.operation = 'opening'")

_BALANCES = text(f"""
    SELECT 'user:' || user_id AS pot, coalesce(credits, 0) AS credits FROM user_credits
    UNION ALL SELECT 'team:' || id, coalesce(credits, 0) FROM teams
    UNION ALL SELECT 'api_key:' || {KEY_DIGEST}, coalesce(credits, 0) FROM api_key_credits
""")  # noqa: S608 - of constants

_WHOSE = {kind: f"t.{kind}_id = ANY(:ids)" for kind in ("user", "team", "api_key")}

_HELD = {
    kind: text(f"""
        SELECT coalesce(-sum(amount), 0)::bigint FROM (
            SELECT sum(t.amount) AS amount FROM credit_transactions t
            WHERE {whose} AND substring({_METADATA} FROM '"pot"\\s*:\\s*"([^"]+)"') = :pot
              AND {_KIND} IN ('reserve', 'close')
            GROUP BY {_HOLD} HAVING bool_and({_KIND} = 'reserve')
        ) open
    """)  # noqa: S608 - of constants
    for kind, whose in _WHOSE.items()
}


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A transaction that reads only, and sees nothing that is committed after its first statement.

    Raises:
        StoreUnavailable: fltr_auth does not answer.
    """
    with transaction(engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)) as tx:
        yield tx


def by_hold(tx: Connection) -> Iterator[list[ScannedRow]]:
    """All rows, those of one hold together, in the order of their ids; a row that names no hold is alone."""
    with tx.execute(_BY_HOLD, execution_options={"yield_per": _FETCHED}) as found:
        for _, together in groupby(found, key=lambda row: row.entry):
            yield [ScannedRow(stored(row), row.pot) for row in together]


def openings(tx: Connection) -> list[ScannedRow]:
    """The rows that say what pots had when the ledger first saw them."""
    return [ScannedRow(stored(row), row.pot) for row in tx.execute(_OPENINGS)]


def balances(tx: Connection) -> dict[str, int]:
    """Each pot's balance, by `kind:id`."""
    return {row.pot: row.credits for row in tx.execute(_BALANCES, execution_options={"yield_per": _FETCHED})}


def held(tx: Connection, pot_kind: str, pot_id: str) -> int:
    """Credits in holds on the pot that are not closed, whoever's they are."""
    parameters = {"ids": id_array([pot_id]), "pot": f"{pot_kind}:{pot_id}"}
    return int(tx.execute(_HELD[pot_kind], parameters).scalar_one())
