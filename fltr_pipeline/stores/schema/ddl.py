"""The development DDL, generated from the specification: the same text every time.

Belongs here: turning the specification into SQL. Does not: running it.
"""

from collections.abc import Iterator

from fltr_pipeline.stores.schema.specification import SERIAL, Column, Database, ForeignKey, Index, OnDelete, Table


def statements(database: Database, present: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Statements that make all but what is `present` (names of tables and indexes), without semicolons.

    Each table comes before those that refer to it. There is no IF NOT EXISTS: `CREATE INDEX` with it still takes the
    lock that waits for every writer of the table.
    """
    return tuple(statement for table in database.tables for statement in _table(table, present))


def script(database: Database) -> str:
    """The same as one readable SQL text."""
    return "".join(f"{statement};\n\n" for statement in statements(database))


def _table(table: Table, present: frozenset[str]) -> Iterator[str]:
    if table.name not in present:
        yield _create_table(table)
        yield from _rows(table)
    yield from (_index(table, index) for index in table.indexes if index.name not in present)


def _create_table(table: Table) -> str:
    lines = [_column(column) for column in table.columns]
    lines.append(f"CONSTRAINT {table.name}_pkey PRIMARY KEY ({table.primary_key})")
    lines += [f"CONSTRAINT {table.name}_{column}_unique UNIQUE ({column})" for column in table.unique]
    lines += [_foreign_key(key) for key in table.foreign_keys]
    body = ",\n    ".join(lines)
    return f"CREATE TABLE public.{table.name} (\n    {body}\n)"


def _rows(table: Table) -> Iterator[str]:
    if table.rows:
        values = ",\n    ".join(f"('{digest}', {created_at})" for digest, created_at in table.rows)
        yield f"INSERT INTO public.{table.name} (hash, created_at) VALUES\n    {values}"


def _column(column: Column) -> str:
    if column.default == SERIAL:
        return f"{column.name} SERIAL NOT NULL"
    default = f" DEFAULT {column.default}" if column.default is not None else ""
    return f"{column.name} {column.type.sql}{'' if column.nullable else ' NOT NULL'}{default}"


def _foreign_key(key: ForeignKey) -> str:
    deletion = "" if key.on_delete is OnDelete.NO_ACTION else f" ON DELETE {key.on_delete}"
    target = f"public.{key.target} ({key.target_column})"
    return f"CONSTRAINT {key.name} FOREIGN KEY ({key.column}) REFERENCES {target}{deletion}"


def _index(table: Table, index: Index) -> str:
    condition = f" WHERE {index.where}" if index.where else ""
    return f"CREATE INDEX {index.name} ON public.{table.name} ({index.columns}){condition}"
