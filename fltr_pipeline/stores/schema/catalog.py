"""What a live database really has, read from `pg_catalog`.

Belongs here: the queries and the shapes they are read into. Does not: an opinion about them (`compare`).

`information_schema` hides objects from roles without privileges on them; `pg_catalog` is readable by every role, so
that the least-privilege role sees what the administrator sees. Without a schema `public` each query finds nothing.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

from psycopg import sql

from fltr_pipeline.stores.schema.connection import Connection
from fltr_pipeline.stores.schema.specification import OnDelete

_PLAIN = re.compile("[a-z_][a-z0-9_$]*")


def quoted(name: str) -> str:
    """A name as a statement must write it: `"Documents"` is another table than `documents`."""
    return name if _PLAIN.fullmatch(name) else sql.Identifier(name).as_string(None)


RELATIONS = """
SELECT c.relname::text, c.relkind IN ('r', 'p', 'f'), pg_has_role(c.relowner, 'USAGE')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
ORDER BY 1
"""

COLUMNS = """
SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
       CASE WHEN a.attidentity <> '' THEN 'identity' ELSE pg_get_expr(d.adbin, d.adrelid) END, t.typtype = 'e'
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'f') AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY c.relname, a.attnum
"""

# A unique index counts as a key whether or not a constraint stands on it; a partial or half-built one does not.
INDEXES = """
SELECT c.relname::text, x.relname::text, i.indisprimary,
       i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL,
       ARRAY(SELECT a.attname::text
             FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.position <= i.indnkeyatts ORDER BY k.position)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_class x ON x.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p')
ORDER BY c.relname, x.relname
"""

# Constraint names are unique per table only: everything is joined by oid.
FOREIGN_KEYS = """
SELECT k.conname::text, c.relname::text,
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u(attnum, position)
             JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum ORDER BY u.position),
       CASE WHEN tn.nspname = 'public' THEN '' ELSE tn.nspname || '.' END || t.relname,
       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u(attnum, position)
             JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.attnum ORDER BY u.position),
       k.confdeltype::text, k.convalidated
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class t ON t.oid = k.confrelid
JOIN pg_namespace tn ON tn.oid = t.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND n.nspname = 'public'
ORDER BY c.relname, k.conname
"""

CHECKS = """
SELECT k.conname::text, c.relname::text, pg_get_expr(k.conbin, k.conrelid),
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) AS u(attnum)
             JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum ORDER BY a.attnum)
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'c' AND n.nspname = 'public'
ORDER BY c.relname, k.conname
"""

_ON_DELETE = {
    "a": OnDelete.NO_ACTION,
    "r": OnDelete.RESTRICT,
    "c": OnDelete.CASCADE,
    "n": OnDelete.SET_NULL,
    "d": OnDelete.SET_DEFAULT,
}


@dataclass(frozen=True, slots=True)
class FoundColumn:
    """A column as it is. `default` is `identity` for an identity column."""

    name: str
    type: str
    nullable: bool
    default: str | None
    enumeration: bool = False


@dataclass(frozen=True, slots=True)
class FoundIndex:
    """An index as it is. `key`: it makes its columns unique over all rows."""

    name: str
    primary: bool
    key: bool
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FoundForeignKey:
    """A foreign key as it is. `target` is qualified when it lies in another schema."""

    name: str
    columns: tuple[str, ...]
    target: str
    target_columns: tuple[str, ...]
    on_delete: OnDelete
    validated: bool


@dataclass(frozen=True, slots=True)
class FoundCheck:
    """A CHECK constraint as it is."""

    name: str
    expression: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FoundTable:
    """A table as it is."""

    name: str
    columns: tuple[FoundColumn, ...] = ()
    indexes: tuple[FoundIndex, ...] = ()
    foreign_keys: tuple[FoundForeignKey, ...] = ()
    checks: tuple[FoundCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalog:
    """Schema `public` of a live database. `owned`: the connected role owns every table."""

    tables: tuple[FoundTable, ...]
    views: tuple[str, ...] = ()
    owned: bool = True

    @property
    def relations(self) -> frozenset[str]:
        """The names that are taken: of tables, their indexes and views."""
        indexes = (index.name for table in self.tables for index in table.indexes)
        return frozenset((*(table.name for table in self.tables), *indexes, *self.views))


def read(connection: Connection) -> Catalog:
    """Reads schema `public` as any role may see it."""
    columns: dict[str, list[FoundColumn]] = defaultdict(list)
    for table, name, kind, nullable, default, enumeration in connection.execute(COLUMNS):
        columns[table].append(FoundColumn(name, kind, nullable, default, enumeration))
    indexes: dict[str, list[FoundIndex]] = defaultdict(list)
    for table, name, primary, key, on in connection.execute(INDEXES):
        indexes[table].append(FoundIndex(name, primary, key, tuple(on)))
    keys: dict[str, list[FoundForeignKey]] = defaultdict(list)
    for name, table, on, target, target_columns, deletion, validated in connection.execute(FOREIGN_KEYS):
        found = FoundForeignKey(name, tuple(on), target, tuple(target_columns), _ON_DELETE[deletion], validated)
        keys[table].append(found)
    checks: dict[str, list[FoundCheck]] = defaultdict(list)
    for name, table, expression, on in connection.execute(CHECKS):
        checks[table].append(FoundCheck(name, expression, tuple(on)))
    relations = connection.execute(RELATIONS).fetchall()
    tables = [name for name, is_table, _ in relations if is_table]
    return Catalog(
        tables=tuple(
            FoundTable(t, tuple(columns[t]), tuple(indexes[t]), tuple(keys[t]), tuple(checks[t])) for t in tables
        ),
        views=tuple(name for name, is_table, _ in relations if not is_table),
        owned=all(owned for _, is_table, owned in relations if is_table),
    )
