"""Which indexes of `fltr_auth` would help, and are not there. They are the web application's to add; we need none.

Belongs here: the list, with the queries that profit, and the probe. Does not: indexes of `fltr`, which are ours
(specification).
"""

import re
from dataclasses import dataclass

from fltr_pipeline.stores.auth.rows import KEY_DIGEST
from fltr_pipeline.stores.schema import connection
from fltr_pipeline.stores.schema.connection import Connection

# The columns and expressions of each usable index in their order. A partial one serves some rows only.
_INDEXES = """
SELECT c.relname::text,
       ARRAY(SELECT coalesce(a.attname::text, pg_get_indexdef(i.indexrelid, k.position::int, true))
             FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
             LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.position <= i.indnkeyatts ORDER BY k.position)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_class x ON x.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_am m ON m.oid = x.relam
WHERE n.nspname = 'public' AND c.relname = ANY(%s) AND m.amname = 'btree' AND i.indisvalid AND i.indpred IS NULL
"""


@dataclass(frozen=True, slots=True)
class HelpfulIndex:
    """An index on these columns, or one that begins with them; `serves` names what it makes fast."""

    table: str
    columns: tuple[str, ...]
    serves: str
    expression: str | None = None
    """SQL over the one column, which is what is indexed instead."""

    @property
    def name(self) -> str:
        """As Drizzle would name it."""
        return f"{self.table}_{'_'.join(self.columns)}_idx"

    @property
    def of(self) -> str:
        """What is indexed, as SQL."""
        return f"({self.expression})" if self.expression else ", ".join(self.columns)

    @property
    def drizzle(self) -> str:
        """The line for the table's third argument in the Drizzle schema."""
        columns = ", ".join(f"t.{_camel_case(column)}" for column in self.columns)
        return f'index("{self.name}").on({f"sql`{self.expression}`" if self.expression else columns})'

    def begins(self, there: list[str]) -> bool:
        """Whether an index on these columns and expressions stands in for it."""
        wanted = (self.expression,) if self.expression else self.columns
        return [_bare(what) for what in there[: len(wanted)]] == [_bare(what) for what in wanted]


HELPFUL = (
    HelpfulIndex(
        "credit_transactions",
        ("user_id", "created_at"),
        "a user's statement and usage page, what their balance holds, the first hold on it, their deletion",
    ),
    HelpfulIndex(
        "credit_transactions", ("team_id",), "what a team's balance holds, the first hold on it, a team's deletion"
    ),
    HelpfulIndex(
        "credit_transactions",
        ("api_key_id", "created_at"),
        "an API key's daily and monthly limit, looked at with each reservation; what its pool holds",
    ),
    HelpfulIndex("api_key_credits", ("user_id",), "a user's API keys, their deletion"),
    HelpfulIndex(
        "api_key_credits", ("api_key",), "finding a key by its digest, with each reservation on its pool", KEY_DIGEST
    ),
)


def missing(auth: str | Connection) -> tuple[HelpfulIndex, ...]:
    """Those of HELPFUL that no index of the database (a URL, or a connection to it) stands in for.

    Raises:
        StoreUnavailable: it does not answer.
    """
    if isinstance(auth, str):
        with connection.transaction(auth) as opened:
            return missing(opened)
    found = auth.execute(_INDEXES, ([index.table for index in HELPFUL],)).fetchall()
    return tuple(
        wanted
        for wanted in HELPFUL
        if not any(table == wanted.table and wanted.begins(there) for table, there in found)
    )


def _bare(what: str) -> str:
    """Without the casts, parentheses and spaces that PostgreSQL adds when it tells of an expression."""
    return re.sub(r"::\w+( varying)?|[()\s]", "", what)


def _camel_case(column: str) -> str:
    first, *rest = column.split("_")
    return first + "".join(word.capitalize() for word in rest)
