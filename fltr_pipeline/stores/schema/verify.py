"""Verification of both databases: the specification's five queries, and a full comparison with the specification.

Belongs here: running the checks and the report. Does not: what counts as harmful (`compare`, `writes`), mending.

Reads the catalogs and no table, so that the least-privilege role reaches the same verdict as the administrator.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from psycopg import IsolationLevel

from fltr_pipeline.errors import SchemaDrift
from fltr_pipeline.stores.schema import catalog, versions, writes
from fltr_pipeline.stores.schema.catalog import Catalog
from fltr_pipeline.stores.schema.compare import Finding, Severity, differences
from fltr_pipeline.stores.schema.connection import Connection, transaction
from fltr_pipeline.stores.schema.specification import FLTR, FLTR_AUTH, Database

TABLES_QUERY = """
SELECT tablename FROM pg_tables
WHERE schemaname = 'public'
ORDER BY tablename;
"""
"""The specification's first and second query, as they stand."""

COLUMNS_QUERY = """
SELECT a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""
"""What the third and fourth, `\\d users` and `\\d user_credits`, show: those are psql's commands, not SQL."""

FOREIGN_KEYS_QUERY = """
SELECT
    tc.table_name,
    kcu.column_name,
    ccu.table_name AS foreign_table,
    ccu.column_name AS foreign_column
FROM information_schema.table_constraints tc
JOIN information_schema.key_column_usage kcu
  ON tc.constraint_name = kcu.constraint_name
JOIN information_schema.constraint_column_usage ccu
  ON ccu.constraint_name = tc.constraint_name
WHERE tc.constraint_type = 'FOREIGN KEY'
  AND tc.table_name IN ('user_credits', 'credit_transactions', 'api_key_credits', 'teams')
ORDER BY tc.table_name;
"""
"""The fifth, as it stands. It joins by constraint name, which is unique per table only: two constraints of one name
show pairs that don't exist. And `constraint_column_usage` is empty for a role that doesn't own the tables."""

CREDIT_TABLES = ("user_credits", "credit_transactions", "api_key_credits", "teams")

Reference = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """All findings about one database."""

    database: str
    findings: tuple[Finding, ...]

    @property
    def harmful(self) -> tuple[Finding, ...]:
        """Drift: must be mended."""
        return tuple(f for f in self.findings if f.severity is Severity.HARMFUL)

    @property
    def harmless(self) -> tuple[Finding, ...]:
        """Differences that change nothing."""
        return tuple(f for f in self.findings if f.severity is Severity.HARMLESS)

    @property
    def conforms(self) -> bool:
        """Whether there is no drift."""
        return not self.harmful

    @property
    def drift(self) -> str:
        """All that is harmful, in a sentence."""
        listed = "; ".join(f"{f.subject}: expected {f.expected}, found {f.found}" for f in self.harmful)
        return f"database {self.database} is not as specified ({listed}); `fltr-pipeline db verify` says how to mend it"

    def require(self) -> None:
        """Does nothing when the database conforms.

        Raises:
            SchemaDrift: naming each harmful difference.
        """
        if self.harmful:
            raise SchemaDrift(self.drift)


def verify_fltr(at: str | Connection) -> VerificationReport:
    """Checks the `fltr` database, given a URL or an open connection.

    Raises:
        StoreUnavailable: it does not answer.
    """
    with _snapshot(at) as connection:
        found = catalog.read(connection)
        queries = (_tables_query(connection, FLTR, 1),)
        ours = (_pipeline_version(connection),)
        return VerificationReport(
            FLTR.name, queries + differences(FLTR, found) + writes.tried(connection, FLTR, found) + ours
        )


def verify_auth(at: str | Connection) -> VerificationReport:
    """Checks the `fltr_auth` database, given a URL or an open connection, as any role.

    Raises:
        StoreUnavailable: it does not answer.
    """
    with _snapshot(at) as connection:
        found = catalog.read(connection)
        queries = (
            _tables_query(connection, FLTR_AUTH, 2),
            _users_query(connection),
            _user_credits_query(connection),
            _foreign_keys_query(connection, found),
        )
        return VerificationReport(
            FLTR_AUTH.name, queries + differences(FLTR_AUTH, found) + writes.tried(connection, FLTR_AUTH, found)
        )


def _snapshot(at: str | Connection) -> AbstractContextManager[Connection]:
    if isinstance(at, str):
        return transaction(at, isolation=IsolationLevel.REPEATABLE_READ, read_only=True)
    return nullcontext(at)


def _pipeline_version(connection: Connection) -> Finding:
    """Our own schema is as old or new as this program, or statements of ours would fail."""
    found, wanted = versions.applied(connection), versions.newest()
    if found == wanted:
        return Finding(Severity.OK, "schema pipeline", f"version {wanted}", "as expected")
    mend = "`fltr-pipeline db init` brings it forward" if found < wanted else "run the newer fltr-pipeline"
    return Finding(Severity.HARMFUL, "schema pipeline", f"version {wanted}", f"version {found}", mend)


def _verdict(number: int, question: str, *, expected: str, wrong: list[str], mend: str, note: str = "") -> Finding:
    subject = f"query {number}: {question}"
    if wrong:
        return Finding(Severity.HARMFUL, subject, expected, ", ".join(wrong), mend)
    return Finding(Severity.OK, subject, expected, f"as expected{note}")


def _tables_query(connection: Connection, database: Database, number: int) -> Finding:
    shown = {str(name) for (name,) in connection.execute(TABLES_QUERY)}
    wanted = {table.name for table in database.tables}
    surplus = sorted(shown - wanted)
    wrong = [f"{name} missing" for name in sorted(wanted - shown)]
    if database.closed:
        wrong += [f"{name} should not exist" for name in surplus]
    return _verdict(
        number,
        f"tables of {database.name}",
        expected=", ".join(sorted(wanted)),
        wrong=wrong,
        mend="see the tables named below",
        note=f", and the owner's {', '.join(surplus)}" if surplus and not wrong else "",
    )


def _users_query(connection: Connection) -> Finding:
    users = FLTR_AUTH.table("users")
    shown = [str(name) for (name,) in connection.execute(COLUMNS_QUERY, ("users",))]
    wrong = [name for name in shown if name in users.forbidden] if shown else ["no such table"]
    return _verdict(
        3,
        "users without credit columns",
        expected=f"none of {', '.join(users.forbidden)}",
        wrong=wrong,
        mend="`fltr-pipeline db migrate-auth --plan` says what the migration would do",
    )


def _user_credits_query(connection: Connection) -> Finding:
    wanted = [column.name for column in FLTR_AUTH.table("user_credits").columns]
    shown = {str(name) for (name,) in connection.execute(COLUMNS_QUERY, ("user_credits",))}
    wrong = [f"{name} missing" for name in wanted if name not in shown] if shown else ["no such table"]
    return _verdict(
        4,
        "user_credits exists",
        expected=", ".join(wanted),
        wrong=wrong,
        mend="`fltr-pipeline db migrate-auth --plan` says what the migration would do",
    )


def _foreign_keys_query(connection: Connection, found: Catalog) -> Finding:
    """The seven references of the credit tables; any more that are wrong are found by the full comparison."""
    wanted = {
        (key.table, key.column, key.target, key.target_column)
        for name in CREDIT_TABLES
        for key in FLTR_AUTH.table(name).foreign_keys
    }
    shown = _shown_references(connection) if found.owned else _real_references(found)
    missing = wanted - (shown & _real_references(found))
    return _verdict(
        5,
        "foreign keys of the credit tables",
        expected=", ".join(_arrow(reference) for reference in sorted(wanted)),
        wrong=[f"{_arrow(reference)} missing" for reference in sorted(missing)],
        mend="see the columns named below",
        note=""
        if found.owned
        else " (from pg_catalog: this role doesn't own the tables, so the query shows it nothing)",
    )


def _shown_references(connection: Connection) -> set[Reference]:
    return {(a, b, c, d) for a, b, c, d in connection.execute(FOREIGN_KEYS_QUERY)}


def _real_references(found: Catalog) -> set[Reference]:
    return {
        (table.name, column, key.target, target)
        for table in found.tables
        if table.name in CREDIT_TABLES
        for key in table.foreign_keys
        for column, target in zip(key.columns, key.target_columns, strict=True)
    }


def _arrow(reference: Reference) -> str:
    table, column, target, target_column = reference
    return f"{table}.{column} → {target}.{target_column}"
