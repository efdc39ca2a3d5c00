"""What the catalogue of a live `fltr_auth` says about the tables of the migration.

Belongs here: the tables' columns and keys, the journals, and all of `rights` and `uses` put together. Does not: what it
means (`shape`), users' rows (`balances`).
"""

from dataclasses import dataclass

from psycopg import sql

from fltr_pipeline.stores.schema import catalog
from fltr_pipeline.stores.schema.catalog import Catalog, FoundTable
from fltr_pipeline.stores.schema.connection import Connection
from fltr_pipeline.stores.schema.migration import rights, uses
from fltr_pipeline.stores.schema.migration.rights import Rights
from fltr_pipeline.stores.schema.migration.uses import Uses
from fltr_pipeline.stores.schema.specification import FLTR_AUTH

COLUMNS = FLTR_AUTH.table("users").forbidden
"""What is to leave `users`: credits, total_credits_purchased, team_id."""

JOURNAL = "__drizzle_migrations"

TABLES = ("users", "teams", "user_credits", JOURNAL)
"""What the migration locks."""

TAKEN = """
SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = to_regnamespace('public')
UNION SELECT t.typname::text FROM pg_type t WHERE t.typnamespace = to_regnamespace('public')
"""

JOURNALS = """
SELECT n.nspname::text, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AND 2 = (
           SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN ('hash', 'created_at'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = %(journal)s AND c.relkind = 'r'
ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal of Drizzle's: its schema, and its `(hash, created_at)`; None when this role can't read them."""

    schema: str
    rows: tuple[tuple[str, int | None], ...] | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The catalogue, as far as the migration is concerned. Without a table `users` nearly all of it is empty."""

    catalog: Catalog
    present: tuple[str, ...]
    """Those of the three columns that `users` still has."""
    taken: frozenset[str]
    """Names in `public` that a new table can't have."""
    rights: Rights
    uses: Uses
    journals: tuple[Journal, ...]

    def table(self, name: str) -> FoundTable | None:
        """The table of this name in `public`, if there is one."""
        return next((table for table in self.catalog.tables if table.name == name), None)

    def types(self, name: str) -> dict[str, str]:
        """The table's columns with their types; none of a table that is not there."""
        table = self.table(name)
        return {column.name: column.type for column in table.columns} if table else {}

    @property
    def journal(self) -> Journal | None:
        """The one in `public`: the one that the web application is configured for."""
        return next((journal for journal in self.journals if journal.schema == "public"), None)


def read(connection: Connection) -> Layout:
    """Reads the catalogue, and the journals' few rows."""
    found = catalog.read(connection)
    of_users = {column.name for table in found.tables if table.name == "users" for column in table.columns}
    present = tuple(name for name in COLUMNS if name in of_users)
    return Layout(
        catalog=found,
        present=present,
        taken=frozenset(name for (name,) in connection.execute(TAKEN)),
        rights=rights.read(connection, TABLES),
        uses=uses.read(connection, present),
        journals=_journals(connection),
    )


def _journals(connection: Connection) -> tuple[Journal, ...]:
    found = connection.execute(JOURNALS, {"journal": JOURNAL}).fetchall()
    return tuple(Journal(schema, _rows(connection, schema) if readable else None) for schema, readable in found)


def _rows(connection: Connection, schema: str) -> tuple[tuple[str, int | None], ...]:
    query = sql.SQL("SELECT hash, created_at FROM {} ORDER BY created_at, hash")
    return tuple(connection.execute(query.format(sql.Identifier(schema, JOURNAL))).fetchall())
