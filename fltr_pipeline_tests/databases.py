"""Fresh copies of template databases: made once, then emptied and handed out again under another name.

Belongs here: copying, emptying, dropping. Does not: what a template holds (conftest).

To copy a database and to drop it costs a tenth of a second of a core and more on a busy disk, to empty one a hundredth.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import Connection, sql

GROWTH_BYTES = 4 * 2**20
"""What has grown more is dropped: its bloat would slow down the next test."""

CATALOGS = """
SELECT string_agg(format('SELECT %L, count(*), max(xmin::text::bigint) FROM %1$I', relname), ' UNION ALL ')
FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared
  AND relname NOT LIKE 'pg_statistic%'
"""
"""A query of what any lasting change of a schema, a grant or a comment changes: it leaves new rows, or fewer."""
OWN_SETTINGS = """
SELECT datacl::text, datconnlimit, (SELECT array_agg(s::text) FROM pg_db_role_setting s WHERE setdatabase = d.oid)
FROM pg_database d WHERE datname = current_database()
"""
TABLES = """
SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1
"""
RESTART_SEQUENCES = "SELECT setval(seqrelid, seqstart, false) FROM pg_sequence"
END_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
SIZE = "SELECT pg_database_size(current_database())"


@dataclass(frozen=True, slots=True)
class Original:
    """What every fresh copy of a template is like."""

    emptied: tuple[str, ...]
    """Its tables without rows."""
    filled: tuple[str, ...]
    """Its other tables: a copy in which a test has changed their rows isn't used again."""
    size: int
    state: Sequence[object]

    @classmethod
    def of(cls, connection: Connection[Any]) -> "Original":
        tables = [name for (name,) in rows(connection, TABLES)]
        filled = tuple(table for table in tables if rows(connection, f"SELECT FROM {table} LIMIT 1"))
        emptied = tuple(table for table in tables if table not in filled)
        return cls(emptied, filled, rows(connection, SIZE)[0][0], state(connection, filled))


class Databases:
    """Copies on one server; those that are not in use wait to be used again."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._originals: dict[str, Original] = {}
        self._idle: defaultdict[str, list[str]] = defaultdict(list)

    @contextmanager
    def copy(self, template: str) -> Iterator[str]:
        """The administrator's URL of a database that is like a new copy of the template."""
        name = f"t_{uuid4().hex[:12]}"
        if self._idle[template]:  # renamed, since whoever remembers the old name must not meet the new rows
            self._execute("ALTER DATABASE {} RENAME TO {}", self._idle[template].pop(), name)
        else:
            self._execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        if template not in self._originals:
            with psycopg.connect(self._url(name)) as connection:
                self._originals[template] = Original.of(connection)
        yield self._url(name)
        if self._empties(name, self._originals[template]):
            self._idle[template].append(name)
        else:
            self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def _empties(self, name: str, original: Original) -> bool:
        """Whether the database is as it was, once its tables are emptied."""
        with psycopg.connect(self._url(name), autocommit=True) as connection:
            while rows(connection, END_OTHERS):
                time.sleep(0.005)  # PostgreSQL's own waiting looks each 0.1 s
            if rows(connection, SIZE)[0][0] > original.size + GROWTH_BYTES:
                return False
            if state(connection, original.filled) != original.state:
                return False
            connection.execute("SET session_replication_role = replica")  # no trigger, no foreign key
            for table in original.emptied:
                connection.execute(f"DELETE FROM {table}".encode())
            connection.execute(RESTART_SEQUENCES)
        return True

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _url(self, name: str) -> str:
        return self._server.replace("/postgres?", f"/{name}?", 1)


def state(connection: Connection[Any], filled: Sequence[str]) -> Sequence[object]:
    """What a test must leave as it was: the schema, the database's own settings and the rows that it came with."""
    ((catalogs,),) = rows(connection, CATALOGS)
    contents = [sorted(rows(connection, f"SELECT t::text FROM {table} t")) for table in filled]
    return [sorted(rows(connection, catalogs)), rows(connection, OWN_SETTINGS), contents]


def rows(connection: Connection[Any], query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode()).fetchall()
