"""What `fltr` holds at this moment: what a rebuild would take away, and who is at work there.

Belongs here: counting and naming, which read only, and the lock that keeps writers out meanwhile. Does not: dropping
anything (`stores.schema`), what others hang on it (`dependents`, `rights`), the ledger, vectors.
"""

from dataclasses import dataclass

from psycopg import sql

from fltr_pipeline.stores.schema import dependents, rights
from fltr_pipeline.stores.schema.connection import Connection
from fltr_pipeline.stores.schema.specification import FLTR, FLTR_AUTH

SCHEMAS = ("public", "pipeline")
"""What a rebuild drops."""

TABLES = """
SELECT n.nspname::text, c.relname::text, c.relkind IN ('r', 'p'),
       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY(%s) AND c.relkind IN ('r', 'p', 'f', 'm') AND NOT c.relispartition
ORDER BY n.nspname DESC, c.relname
"""

# What belongs to an extension is no obstacle of its own: the extension is.
OTHERS = """
WITH mine AS (SELECT oid, nspname FROM pg_namespace WHERE nspname = ANY(%s)),
     extended AS (SELECT objid FROM pg_depend WHERE deptype = 'e')
SELECT 'view ' || c.oid::regclass FROM pg_class c JOIN mine ON mine.oid = c.relnamespace
    WHERE c.relkind = 'v' AND c.oid NOT IN (TABLE extended)
UNION ALL SELECT 'function ' || p.oid::regprocedure FROM pg_proc p JOIN mine ON mine.oid = p.pronamespace
    WHERE p.oid NOT IN (TABLE extended)
UNION ALL SELECT 'type ' || format_type(t.oid, NULL) FROM pg_type t JOIN mine ON mine.oid = t.typnamespace
    WHERE t.typtype IN ('e', 'd') AND t.oid NOT IN (TABLE extended)
ORDER BY 1
"""

LEASES = "SELECT run_id, count(*) FROM pipeline.documents WHERE lease_until > now() GROUP BY run_id ORDER BY run_id"

# Any role may see who holds which lock; what the others are doing is for administrators.
SESSIONS = """
SELECT a.pid, a.usename::text, a.application_name, string_agg(DISTINCT c.relname, ', ')
FROM pg_locks l
JOIN pg_class c ON c.oid = l.relation
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND n.nspname = ANY(%s) AND c.relkind IN ('r', 'p') AND l.granted AND l.pid <> pg_backend_pid()
GROUP BY 1, 2, 3 ORDER BY 1
"""

# A long dump must not end the transaction that waits for it. Not every version has all of these.
PATIENCE = """
SELECT set_config(name, CASE name WHEN 'lock_timeout' THEN '10s' ELSE '0' END, true) FROM pg_settings
WHERE name IN ('lock_timeout', 'statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')
"""


@dataclass(frozen=True, slots=True)
class HeldTable:
    """A table and how many rows it has. `specified`: it belongs there."""

    schema: str
    name: str
    rows: int | None
    """None: this role may not read them."""
    specified: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in the database."""

    database: str
    """Its name on the server."""
    tables: tuple[HeldTable, ...]
    others: tuple[str, ...]
    """Views, functions and types."""
    outside: tuple[str, ...]
    """What is not in these schemas, but would fall with them: in another schema, an extension, published."""
    lacking: tuple[str, ...]
    """What this role may not do, and would have to."""
    rights: tuple[str, ...]
    """Statements that give other roles again what they have: new tables and schemas are this role's alone."""
    leases: tuple[tuple[str, int], ...]
    """Run id and number of documents in its hands."""

    def has(self, schema: str, name: str) -> bool:
        """Whether there is such a table."""
        return any((t.schema, t.name) == (schema, name) for t in self.tables)

    @property
    def of_auth(self) -> tuple[str, ...]:
        """Tables of people and money, besides `users`: with any, this may be no `fltr` at all."""
        theirs = {table.name for table in FLTR_AUTH.tables} - {"users"}
        return tuple(t.name for t in self.tables if t.schema == "public" and t.name in theirs)


def survey(connection: Connection) -> Survey:
    """Reads all of it, row counts included."""
    known = [table.name for table in FLTR.tables]
    found = connection.execute(TABLES, (list(SCHEMAS),)).fetchall()
    tables = tuple(
        HeldTable(
            schema, name, _rows(connection, schema, name) if readable else None, schema == "pipeline" or name in known
        )
        for schema, name, _, readable in found
    )
    leased = any((t.schema, t.name) == ("pipeline", "documents") and t.rows is not None for t in tables)
    return Survey(
        database=connection.info.dbname,
        tables=tables,
        others=tuple(name for (name,) in connection.execute(OTHERS, (list(SCHEMAS),))),
        outside=dependents.outside(connection, SCHEMAS),
        lacking=rights.lacking(connection, SCHEMAS),
        rights=rights.given(connection, SCHEMAS, known),
        leases=tuple((run_id, n) for run_id, n in connection.execute(LEASES)) if leased else (),
    )


def keep_writers_out(connection: Connection) -> None:
    """Until the transaction ends nobody but it changes a row, while everybody, `pg_dump` too, may read.

    Raises:
        psycopg.errors.LockNotAvailable: somebody has been writing for 10 s.
    """
    connection.execute(PATIENCE)
    found = connection.execute(TABLES, (list(SCHEMAS),)).fetchall()
    names = [sql.Identifier(schema, name) for schema, name, lockable, _ in found if lockable]
    if names:
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(sql.SQL(", ").join(names)))


def sessions(connection: Connection) -> tuple[str, ...]:
    """Others that hold locks on tables here."""
    found = connection.execute(SESSIONS, (list(SCHEMAS),))
    return tuple(f"pid {pid} of {role} ({name or 'unnamed'}) on {tables}" for pid, role, name, tables in found)


def _rows(connection: Connection, schema: str, name: str) -> int:
    query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, name))
    return int(connection.execute(query).fetchall()[0][0])
