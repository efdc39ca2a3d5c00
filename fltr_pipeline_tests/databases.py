"""Fresh copies of template databases: made once, then emptied and handed out again under another name.

Belongs here: copying, emptying, dropping. Does not: what a template holds (conftest).

To copy a database and to drop it costs a tenth of a second of a core and more on a busy disk, to empty one a hundredth.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
END_CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"


@dataclass(frozen=True, slots=True)
class Original:
    """What every fresh copy of a template is like."""

    size: int
    shape: Sequence[object]
    emptied: Sequence[str]
    """Its tables without rows."""
    filled: Mapping[str, Sequence[object]]
    """Its other tables and their rows."""

    @classmethod
    def of(cls, connection: Connection[Any]) -> "Original":
        found = {name: contents(connection, name) for (name,) in rows(connection, TABLES)}
        filled = {name: there for name, there in found.items() if there}
        return cls(size(connection), shape(connection), [name for name in found if name not in filled], filled)

    def is_kept_by(self, connection: Connection[Any]) -> bool:
        """Whether a test that used this copy changed nothing but rows, not too many, of tables that were empty."""
        return (
            size(connection) <= self.size + GROWTH_BYTES
            and shape(connection) == self.shape
            and all(contents(connection, name) == there for name, there in self.filled.items())
        )


class Databases:
    """Copies on one server; those that are not in use wait to be used again."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._originals: dict[str, Original] = {}
        self._idle: defaultdict[str, list[str]] = defaultdict(list)

    @contextmanager
    def copy(self, template: str) -> Iterator[str]:
        """The administrator's URL of a database that is like a new copy of the template."""
        name = self._idle[template].pop() if self._idle[template] else self._make(template)
        yield self._url(name)
        name = self._rename(name)
        if self._empty(name, self._originals[template]):
            self._idle[template].append(name)
        else:
            self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def _make(self, template: str) -> str:
        name = new_name()
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        if template not in self._originals:
            with psycopg.connect(self._url(name)) as connection:
                self._originals[template] = Original.of(connection)
        return name

    def _rename(self, name: str) -> str:
        """Whoever still has the old name, a straggling thread or a cached engine, can't meet what comes next."""
        new = new_name()
        with psycopg.connect(self._server, autocommit=True) as connection:
            while connection.execute(END_CONNECTIONS, [name]).fetchall():
                time.sleep(0.005)  # PostgreSQL's own waiting looks each 0.1 s
        self._execute("ALTER DATABASE {} RENAME TO {}", name, new)
        return new

    def _empty(self, name: str, original: Original) -> bool:
        """Empties the tables, if the database is like a new copy then."""
        with psycopg.connect(self._url(name), autocommit=True) as connection:
            if not original.is_kept_by(connection):
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


def new_name() -> str:
    return f"t_{uuid4().hex[:12]}"


def size(connection: Connection[Any]) -> int:
    return int(rows(connection, "SELECT pg_database_size(current_database())")[0][0])


def shape(connection: Connection[Any]) -> Sequence[object]:
    """Changes with the schema and with the database's own settings."""
    ((catalogs,),) = rows(connection, CATALOGS)
    return [sorted(rows(connection, catalogs)), rows(connection, OWN_SETTINGS)]


def contents(connection: Connection[Any], table: str) -> Sequence[object]:
    return sorted(rows(connection, f"SELECT t::text FROM {table} t"))


def rows(connection: Connection[Any], query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode()).fetchall()
