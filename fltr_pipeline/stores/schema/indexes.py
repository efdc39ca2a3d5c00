"""Which indexes of `fltr_auth` would help, and are not there. They are the web application's to add; we need none.

Belongs here: the list, with the queries that profit, and the probe. Does not: indexes of `fltr`, which are ours
(specification).
"""

from dataclasses import dataclass

from fltr_pipeline.stores.schema import connection
from fltr_pipeline.stores.schema.connection import Connection

# The columns of each usable index in their order; NULL for an expression. A partial one serves some rows only.
_INDEXES = """
SELECT c.relname::text,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
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

    @property
    def name(self) -> str:
        """As Drizzle would name it."""
        return f"{self.table}_{'_'.join(self.columns)}_idx"

    @property
    def drizzle(self) -> str:
        """The line for the table's third argument in the Drizzle schema."""
        columns = ", ".join(f"t.{_camel_case(column)}" for column in self.columns)
        return f'index("{self.name}").on({columns})'


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
        if not any(table == wanted.table and _begins(columns, wanted.columns) for table, columns in found)
    )


def _begins(columns: list[str | None], wanted: tuple[str, ...]) -> bool:
    return tuple(columns[: len(wanted)]) == wanted


def _camel_case(column: str) -> str:
    first, *rest = column.split("_")
    return first + "".join(word.capitalize() for word in rest)
