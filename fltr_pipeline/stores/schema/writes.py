"""Does a database let in what we write? Tried on its types and CHECK constraints, while nothing is written.

Belongs here: making rows of the owner's own row types, and asking its CHECKs about them. Does not: what we write
(`specification`), anything else about a schema (`compare`).

An enumeration without one of our words, a `varchar` too short for it, a domain or a CHECK that refuses it: the first
such write would fail in the middle of the work. Only the database itself can tell for certain.
"""

import json
from collections.abc import Iterator, Mapping

import psycopg
from psycopg import sql

from fltr_pipeline.stores.schema.catalog import Catalog, FoundCheck, FoundTable, quoted
from fltr_pipeline.stores.schema.compare import Finding, Severity, through_its_owner
from fltr_pipeline.stores.schema.connection import Connection
from fltr_pipeline.stores.schema.specification import Database, Table

AS_COLUMN = "SELECT true FROM json_populate_record(NULL::public.{table}, %s::json)"
AGAINST_CHECK = "SELECT ({expression}) IS NOT FALSE FROM json_populate_record(NULL::public.{table}, %s::json)"


def tried(connection: Connection, expected: Database, found: Catalog) -> tuple[Finding, ...]:
    """A harmful finding for each value and each CHECK that stands in our way, a harmless one for each other CHECK."""
    by_name = {table.name: table for table in found.tables}
    findings = (
        finding
        for table in expected.tables
        if table.writes and table.name in by_name
        for look in (_columns, _checks)
        for finding in look(connection, table, by_name[table.name])
    )
    return tuple(findings) if expected.closed else tuple(map(through_its_owner, findings))


def _columns(connection: Connection, expected: Table, found: FoundTable) -> Iterator[Finding]:
    query = sql.SQL(AS_COLUMN).format(table=sql.Identifier(expected.name))
    types = {column.name: column.type for column in found.columns}
    for name, kind in types.items():
        values = {json.dumps(row[name]): row[name] for row in expected.writes if name in row}
        refused = [shown for shown, v in values.items() if _asked(connection, query, {name: v}) is None]
        if refused:
            mend = f"ALTER TABLE public.{expected.name} ALTER COLUMN {name} TYPE {_specified_type(expected, name)}"
            subject = f"{expected.name}.{name}"
            takes = f"a type that takes {', '.join(refused)}"
            yield Finding(Severity.HARMFUL, subject, takes, f"{kind} does not", mend)


def _checks(connection: Connection, expected: Table, found: FoundTable) -> Iterator[Finding]:
    for check in found.checks:
        # psycopg takes a per cent sign for a parameter's.
        query = sql.SQL(AGAINST_CHECK).format(
            expression=sql.SQL(check.expression.replace("%", "%%")),
            table=sql.Identifier(expected.name),
        )
        answers = [(row, _asked(connection, query, row)) for row in expected.writes]
        refused = [row for row, answer in answers if answer is False]
        shown = f"CHECK {check.expression}"
        if refused:
            mend = f"ALTER TABLE public.{expected.name} DROP CONSTRAINT {quoted(check.name)}"
            lets_in = f"{expected.name} takes {_words(check, refused[0])}"
            yield Finding(Severity.HARMFUL, check.name, lets_in, shown, mend)
        else:
            known = "" if all(answer for _, answer in answers) else ", which could not be tried"
            yield Finding(Severity.HARMLESS, check.name, "not in the specification", f"{shown}{known}")


def _asked(connection: Connection, query: sql.Composed, row: Mapping[str, object]) -> bool | None:
    """What the database answers about the row; None: it can't make such a row, or can't tell."""
    try:
        with connection.transaction():
            return bool(connection.execute(query, (json.dumps(row),)).fetchall()[0][0])
    except psycopg.OperationalError:
        raise
    except psycopg.Error:
        return None


def _specified_type(table: Table, name: str) -> str:
    return next(column.type.sql for column in table.columns if column.name == name)


def _words(check: FoundCheck, row: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {json.dumps(row[name])}" for name in check.columns if name in row)
