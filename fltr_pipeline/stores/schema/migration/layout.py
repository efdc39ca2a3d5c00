"""What the catalogue of a live `fltr_auth` says about the tables of the migration.

Belongs here: the queries and what they are read into. Does not: what it means (`shape`), users' rows (`balances`).
"""

from dataclasses import dataclass

from psycopg import sql

from fltr_pipeline.stores.schema import catalog
from fltr_pipeline.stores.schema.catalog import Catalog, FoundTable
from fltr_pipeline.stores.schema.connection import Connection
from fltr_pipeline.stores.schema.specification import FLTR_AUTH

COLUMNS = FLTR_AUTH.table("users").forbidden
"""What is to leave `users`: credits, total_credits_purchased, team_id."""

JOURNAL = "__drizzle_migrations"

USERS = """
SELECT pg_get_userbyid(c.relowner)::text, pg_has_role(c.relowner, 'USAGE'), current_user::text,
       c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhparent, inhrelid)), c.relrowsecurity
FROM pg_class c WHERE c.oid = to_regclass('public.users')
"""

# Of what hangs on a column, some keeps it from being dropped; what has another kind of dependency as well goes with it:
# constraints, indexes, and, which nobody would notice, columns that are generated from it.
DEPENDENTS = """
SELECT a.attname::text, pg_describe_object(d.classid, d.objid, d.objsubid),
       bool_and(d.deptype = 'n') OR (d.classid = 'pg_class'::regclass AND d.objsubid <> 0)
FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass('public.users')
  AND a.attname = ANY(%(columns)s) AND d.classid <> 'pg_attrdef'::regclass
GROUP BY a.attname, d.classid, d.objid, d.objsubid ORDER BY 1, 2
"""

# No dependency is recorded of what a trigger's function says: it would fail at each change of a user afterwards.
TRIGGERS = """
SELECT t.tgname::text FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = to_regclass('public.users') AND NOT t.tgisinternal AND p.prosrc ~* %(words)s
ORDER BY 1
"""

GRANTS = """
SELECT r.rolname::text, array_agg(g.privilege_type ORDER BY g.privilege_type)
FROM pg_class c CROSS JOIN aclexplode(c.relacl) g JOIN pg_roles r ON r.oid = g.grantee
WHERE c.oid = to_regclass('public.users') AND g.grantee <> c.relowner
  AND g.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
GROUP BY 1 ORDER BY 1
"""

JOURNALS = """
SELECT n.nspname::text, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AND 2 = (
           SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN ('hash', 'created_at'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = %(journal)s AND c.relkind = 'r'
ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Dependent:
    """Something that hangs on one of the columns. `blocks`: the column can't be dropped, or not without harm."""

    column: str
    what: str
    blocks: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """What a role other than the owner may do with the whole of `users`."""

    role: str
    privileges: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal of Drizzle's: its schema, and its `(hash, created_at)`; None when this role can't read them."""

    schema: str
    rows: tuple[tuple[str, int | None], ...] | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The catalogue, as far as the migration is concerned. Without a table `users` nearly all of it is empty."""

    catalog: Catalog
    owner: str | None
    """Of `users`; None when there is none."""
    owned: bool
    """Whether the connected role has the owner's rights."""
    role: str
    ordinary: bool
    """Whether `users` is a table on its own: no view, no partitions, no inheritance."""
    row_security: bool
    """Whether policies decide who sees which row of `users`."""
    dependents: tuple[Dependent, ...]
    triggers: tuple[str, ...]
    """On `users`, with a function that mentions one of the columns."""
    grants: tuple[Grant, ...]
    journals: tuple[Journal, ...]

    def table(self, name: str) -> FoundTable | None:
        """The table of this name in `public`, if there is one."""
        return next((table for table in self.catalog.tables if table.name == name), None)

    def types(self, name: str) -> dict[str, str]:
        """The table's columns with their types; none of a table that is not there."""
        table = self.table(name)
        return {column.name: column.type for column in table.columns} if table else {}

    @property
    def present(self) -> tuple[str, ...]:
        """Those of the three columns that `users` still has."""
        return tuple(name for name in COLUMNS if name in self.types("users"))

    @property
    def journal(self) -> Journal | None:
        """The one in `public`: the one that the web application is configured for."""
        return next((journal for journal in self.journals if journal.schema == "public"), None)


def read(connection: Connection) -> Layout:
    """Reads the catalogue, and the journals' few rows."""
    about = connection.execute(USERS).fetchone() or (None, False, "", False, False)
    owner, owned, role, ordinary, row_security = about
    columns = {"columns": list(COLUMNS), "words": rf"\m({'|'.join(COLUMNS)})\M"}
    return Layout(
        catalog=catalog.read(connection),
        owner=owner,
        owned=owned,
        role=role,
        ordinary=ordinary,
        row_security=row_security,
        dependents=tuple(Dependent(*row) for row in connection.execute(DEPENDENTS, columns)),
        triggers=tuple(name for (name,) in connection.execute(TRIGGERS, columns)),
        grants=tuple(Grant(role, tuple(privileges)) for role, privileges in connection.execute(GRANTS)),
        journals=_journals(connection),
    )


def _journals(connection: Connection) -> tuple[Journal, ...]:
    found = connection.execute(JOURNALS, {"journal": JOURNAL}).fetchall()
    return tuple(Journal(schema, _rows(connection, schema) if readable else None) for schema, readable in found)


def _rows(connection: Connection, schema: str) -> tuple[tuple[str, int | None], ...]:
    query = sql.SQL("SELECT hash, created_at FROM {} ORDER BY created_at, hash")
    return tuple(connection.execute(query.format(sql.Identifier(schema, JOURNAL))).fetchall())
