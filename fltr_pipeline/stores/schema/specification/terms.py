"""The words in which a schema is specified: tables, columns, keys, and where each fact comes from.

Belongs here: the shapes. Does not: any table of ours or the owner's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """Where a fact comes from."""

    SPECIFICATION = "the specification's table list"
    MIGRATION = "the specification's migration SQL"
    BETTER_AUTH = "Better Auth's core schema"
    BETTER_AUTH_STRIPE = "the schema of Better Auth's Stripe plugin"
    DRIZZLE = "Drizzle's PostgreSQL convention"
    OURS = "this project's choice"


class OnDelete(StrEnum):
    """What the deletion of the referenced row does."""

    CASCADE = "CASCADE"
    SET_NULL = "SET NULL"
    SET_DEFAULT = "SET DEFAULT"
    RESTRICT = "RESTRICT"
    NO_ACTION = "NO ACTION"


@dataclass(frozen=True, slots=True)
class Type:
    """A column's type, as `format_type` spells it, and the others that serve as well."""

    sql: str
    also: tuple[str, ...] = ()
    limit_allowed: bool = True
    """Whether `varchar(n)` will do in place of `text`."""
    enumeration_allowed: bool = False
    """Whether an enumeration will do; that it has the words that we write is seen by trying."""


IDENTIFIER = Type("text", also=("uuid", "character varying"))
TEXT = Type("text", also=("character varying",))
WORD = Type("text", also=("character varying",), enumeration_allowed=True)
LONG_TEXT = Type("text", also=("character varying",), limit_allowed=False)
INTEGER = Type("integer", also=("bigint",))
BIGINT = Type("bigint")
BOOLEAN = Type("boolean")
JSON = Type("json", also=("jsonb",))
TIMESTAMP = Type("timestamp without time zone", also=("timestamp with time zone",))
TIMESTAMPTZ = Type("timestamp with time zone", also=("timestamp without time zone",))


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `source` names it, `type_source` says where type, nullability and default come from."""

    name: str
    type: Type
    nullable: bool
    default: str | None
    """As `pg_get_expr` spells it; `SERIAL` for a sequence of the column's own."""
    source: Source
    type_source: Source


SERIAL = "nextval"

Written = Mapping[str, object]
"""Column → value, as JSON has it."""

WRITTEN_ID = "0b9e36a8-7f4c-4f0e-9a53-5d0f3c1e2b47"
WRITTEN_TIME = "2026-01-31T12:00:00.123456"
"""Of the form of those that we write."""


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key of one column onto another table's `id`."""

    table: str
    column: str
    target: str
    on_delete: OnDelete
    source: Source = Source.SPECIFICATION
    target_column: str = "id"

    @property
    def name(self) -> str:
        """The constraint's name, as Drizzle makes it."""
        return f"{self.table}_{self.column}_{self.target}_{self.target_column}_fk"


@dataclass(frozen=True, slots=True)
class Index:
    """An index that we add; nobody else needs it, so its absence is slow rather than wrong."""

    name: str
    columns: str
    where: str | None = None
    source: Source = Source.OURS


@dataclass(frozen=True, slots=True)
class Table:
    """A table. `unique` holds columns that are unique on their own; `rows` are the literal rows of a fresh copy."""

    name: str
    primary_key: str
    columns: tuple[Column, ...]
    unique: tuple[str, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    indexes: tuple[Index, ...] = ()
    rows: tuple[tuple[str, int], ...] = ()
    """Of `(hash, created_at)`: only Drizzle's journal has any."""
    inserted: bool = False
    """Whether the pipeline inserts rows, so that a column that suddenly demands a value breaks it."""
    writes: tuple[Written, ...] = ()
    """What the pipeline writes, one of each sort: the owner's types and CHECKs must let all of it in."""
    forbidden: tuple[str, ...] = ()
    """Columns that the specification says must not be here."""
    source: Source = Source.SPECIFICATION
    """Of the table, its primary key and its unique columns."""


@dataclass(frozen=True, slots=True)
class Database:
    """A database's schema `public`. `closed`: it holds these tables and columns and nothing else, ever."""

    name: str
    closed: bool
    tables: tuple[Table, ...]

    def table(self, name: str) -> Table:
        """The table of this name, which must exist."""
        return next(table for table in self.tables if table.name == name)


def columns(names: str, kind: Type, *, of: Source, typed: Source, nullable: bool = True) -> tuple[Column, ...]:
    """Columns that differ in their names only."""
    return tuple(Column(name, kind, nullable, None, of, typed) for name in names.split())


def column(
    name: str, kind: Type, *, of: Source, typed: Source, nullable: bool = False, default: str | None = None
) -> Column:
    """`of`: where the column comes from; `typed`: where its type does."""
    return Column(name, kind, nullable, default, of, typed)
