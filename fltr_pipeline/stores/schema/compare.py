"""Judges a live database against the specification: what differs, whether it hurts, how to mend it.

Belongs here: pure functions from specification and catalog to findings. Does not: reading a database (`catalog`).

A difference is harmful when the specification is contradicted, or when a statement of ours would fail or do the wrong
thing. It is harmless when every statement still means the same (uuid for a text id), or when it is the owner's own
affair (one more column in `fltr_auth`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from fltr_pipeline.stores.schema.catalog import Catalog, FoundColumn, FoundForeignKey, FoundTable, quoted
from fltr_pipeline.stores.schema.specification import (
    IDENTIFIER,
    SERIAL,
    Column,
    Database,
    ForeignKey,
    OnDelete,
    Source,
    Table,
)

UUID_LENGTH = 36
"""Characters of an id that we write: a `varchar` for ids must hold at least these."""

_FROM_SPECIFICATION = {Source.SPECIFICATION, Source.MIGRATION}


class Severity(StrEnum):
    """Whether a difference is drift."""

    OK = "ok"
    HARMLESS = "harmless"
    HARMFUL = "harmful"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. `subject` is `table`, `table.column`, an index or `query n: …`."""

    severity: Severity
    subject: str
    expected: str
    found: str
    mend: str = ""
    """What to do: a statement or a sentence; empty where nothing needs doing."""


def differences(expected: Database, found: Catalog) -> tuple[Finding, ...]:
    """Everything in which `found` differs, and one `ok` finding for each table without harmful differences."""
    by_name = {table.name: table for table in found.tables}
    findings = list(_surplus(expected, found))
    for table in expected.tables:
        actual = by_name.get(table.name)
        of_table = [_missing_table(expected, table)] if actual is None else list(_table(expected, table, actual))
        findings += of_table
        if all(f.severity is not Severity.HARMFUL for f in of_table):
            findings.append(_matching(table, exact=not of_table))
    return tuple(findings) if expected.closed else tuple(map(through_its_owner, findings))


def through_its_owner(finding: Finding) -> Finding:
    """Drizzle owns `fltr_auth`: what is altered behind its back is undone or trips its next migration."""
    if not finding.mend.startswith("ALTER"):
        return finding
    return replace(finding, mend=f"by a migration of the web application's Drizzle schema: {finding.mend}")


def _matching(table: Table, *, exact: bool) -> Finding:
    references = ", ".join(f"{key.column} → {key.target}" for key in table.foreign_keys) or "no foreign key"
    shape = f"{len(table.columns)} columns, primary key {table.primary_key}, {references}"
    return Finding(Severity.OK, table.name, shape, "as specified" if exact else "no harmful difference")


def _missing_table(database: Database, table: Table) -> Finding:
    if database.closed:
        mend = "`fltr-pipeline db init` creates it"
    elif Source.MIGRATION in {table.source, table.columns[0].source}:
        mend = "`fltr-pipeline db migrate-auth --plan` says what the migration would do"
    else:
        mend = "the web application's own migrations create it"
    return Finding(Severity.HARMFUL, table.name, "a table", "missing", mend)


def _surplus(expected: Database, found: Catalog) -> Iterator[Finding]:
    """Tables and views that are not in the specification."""
    known = {table.name for table in expected.tables}
    for table in found.tables:
        if table.name in known:
            continue
        if expected.closed:
            mend = f"back it up, move what is needed elsewhere, then DROP TABLE public.{quoted(table.name)} CASCADE"
            yield Finding(Severity.HARMFUL, table.name, f"no such table in {expected.name}", "a table", mend)
        else:
            yield Finding(Severity.HARMLESS, table.name, "not in the specification", "a table of the owner's")
        yield from (_into_user_credits(table.name, key) for key in table.foreign_keys if _targets_user_credits(key))
    for view in found.views:
        if view not in known:
            yield Finding(Severity.HARMLESS, view, "not in the specification", "a view")


def _table(database: Database, expected: Table, found: FoundTable) -> Iterator[Finding]:
    actual = {column.name: column for column in found.columns}
    for column in expected.columns:
        if column.name in actual:
            yield from _column(expected, column, actual[column.name])
        else:
            yield _missing_column(expected, column)
    yield from _surplus_columns(database, expected, found)
    yield from _keys(expected, found)
    yield from _foreign_keys(database, expected, found)
    yield from _indexes(expected, found)


def _missing_column(table: Table, column: Column) -> Finding:
    null = "" if column.nullable else " NOT NULL"
    default = f" DEFAULT {column.default}" if column.default not in {None, SERIAL} else ""
    mend = f"ALTER TABLE public.{table.name} ADD COLUMN {column.name} {column.type.sql}{null}{default}"
    severity = Severity.HARMFUL if column.source in _FROM_SPECIFICATION else Severity.HARMLESS
    return Finding(severity, f"{table.name}.{column.name}", column.type.sql, "missing", mend)


def _surplus_columns(database: Database, expected: Table, found: FoundTable) -> Iterator[Finding]:
    known = {column.name for column in expected.columns}
    for column in found.columns:
        subject = f"{expected.name}.{column.name}"
        if column.name in expected.forbidden:
            mend = "`fltr-pipeline db migrate-auth` moves the column to user_credits; --plan says how"
            yield Finding(Severity.HARMFUL, subject, "no credit columns on users", column.type, mend)
        elif column.name not in known and database.closed:
            mend = f"ALTER TABLE public.{expected.name} DROP COLUMN {quoted(column.name)}"
            yield Finding(Severity.HARMFUL, subject, "exactly the columns of the specification", column.type, mend)
        elif column.name not in known:
            yield Finding(Severity.HARMLESS, subject, "not in the specification", f"{column.type}, the owner's")


def _column(table: Table, expected: Column, found: FoundColumn) -> Iterator[Finding]:
    subject = f"{table.name}.{expected.name}"
    alter = f"ALTER TABLE public.{table.name} ALTER COLUMN {expected.name}"
    severity = _type_severity(expected, found)
    if severity is not Severity.OK:
        mend = f"{alter} TYPE {expected.type.sql}" if severity is Severity.HARMFUL else ""
        yield Finding(severity, subject, expected.type.sql, found.type, mend)
    if found.nullable and not expected.nullable:
        severity = Severity.HARMFUL if expected.type_source in _FROM_SPECIFICATION else Severity.HARMLESS
        yield Finding(severity, subject, "NOT NULL", "NULL allowed", f"{alter} SET NOT NULL")
    if expected.nullable and not found.nullable:
        # Our INSERT leaves it out or writes NULL; a default would only help the former.
        severity = Severity.HARMFUL if table.inserted else Severity.HARMLESS
        yield Finding(severity, subject, "NULL allowed", "NOT NULL", f"{alter} DROP NOT NULL")
    yield from _default(subject, alter, expected, found)


def _type_severity(expected: Column, found: FoundColumn) -> Severity:
    if found.type == expected.type.sql:
        return Severity.OK
    if found.enumeration and expected.type.enumeration_allowed:
        return Severity.HARMLESS
    limit = re.fullmatch(r"character varying\((\d+)\)", found.type)
    if re.sub(r"\(\d+\)", "", found.type) not in (expected.type.sql, *expected.type.also):
        return Severity.HARMFUL
    if limit and not expected.type.limit_allowed:
        return Severity.HARMFUL
    if limit and expected.type is IDENTIFIER and int(limit[1]) < UUID_LENGTH:
        return Severity.HARMFUL
    return Severity.HARMLESS


def _default(subject: str, alter: str, expected: Column, found: FoundColumn) -> Iterator[Finding]:
    """Defaults matter only where the specification's SQL has them: every row of ours carries all its values."""
    if _plain_default(expected.default) == _plain_default(found.default):
        return
    binding = expected.type_source is Source.MIGRATION and expected.default is not None and found.default is None
    mend = f"{alter} SET DEFAULT {expected.default}" if binding and expected.default != SERIAL else ""
    severity = Severity.HARMFUL if binding else Severity.HARMLESS
    yield Finding(
        severity, subject, f"default {expected.default or 'none'}", f"default {found.default or 'none'}", mend
    )


def _plain_default(default: str | None) -> str | None:
    """Without casts and spelling: `'0'::text` and `0`, `CURRENT_TIMESTAMP` and `now()`, any sequence and `identity`."""
    if default is None:
        return None
    if default == "identity" or default.startswith(SERIAL):
        return SERIAL
    plain = re.sub(r"::[a-z ]+(\(\d+\))?", "", default).strip("()'").lower()
    return "now" if plain in {"now", "current_timestamp"} else plain


def _keys(expected: Table, found: FoundTable) -> Iterator[Finding]:
    primary = next((index.columns for index in found.indexes if index.primary), ())
    if primary != (expected.primary_key,):
        mend = f"ALTER TABLE public.{expected.name} ADD PRIMARY KEY ({expected.primary_key})"
        is_now = f"({', '.join(primary)})" if primary else "none"
        yield Finding(Severity.HARMFUL, expected.name, f"primary key ({expected.primary_key})", is_now, mend)
    keys = {index.columns for index in found.indexes if index.key}
    for column in expected.unique:
        if (column,) not in keys:
            mend = (
                f"ALTER TABLE public.{expected.name} ADD CONSTRAINT {expected.name}_{column}_unique UNIQUE ({column})"
            )
            yield Finding(Severity.HARMFUL, f"{expected.name}.{column}", "UNIQUE", "not unique", mend)


def _foreign_keys(database: Database, expected: Table, found: FoundTable) -> Iterator[Finding]:
    wanted = {(key.column,): key for key in expected.foreign_keys}
    for key in expected.foreign_keys:
        actual = [f for f in found.foreign_keys if f.columns == (key.column,)]
        if not actual:
            yield Finding(Severity.HARMFUL, f"{key.table}.{key.column}", _describe(key), "no foreign key", _add(key))
        for candidate in actual:
            yield from _foreign_key(key, candidate)
    known = {(column.name,) for column in expected.columns}
    for surplus in (f for f in found.foreign_keys if f.columns not in wanted):
        if _targets_user_credits(surplus):
            yield _into_user_credits(expected.name, surplus)
            continue
        severity = Severity.HARMFUL if database.closed and surplus.columns in known else Severity.HARMLESS
        subject = f"{expected.name}.{', '.join(surplus.columns)}"
        mend = _drop(expected.name, surplus) if severity is Severity.HARMFUL else ""
        yield Finding(severity, subject, "no foreign key", _describe_found(surplus), mend)


def _foreign_key(expected: ForeignKey, found: FoundForeignKey) -> Iterator[Finding]:
    subject = f"{expected.table}.{expected.column}"
    replace = f"{_drop(expected.table, found)}; {_add(expected)}"
    if (found.target, found.target_columns) != (expected.target, (expected.target_column,)):
        yield Finding(Severity.HARMFUL, subject, _describe(expected), _describe_found(found), replace)
        return
    if found.on_delete is not expected.on_delete:
        # RESTRICT differs from NO ACTION only in when it refuses.
        harmless = {found.on_delete, expected.on_delete} == {OnDelete.RESTRICT, OnDelete.NO_ACTION}
        severity = Severity.HARMLESS if harmless else Severity.HARMFUL
        yield Finding(severity, subject, _describe(expected), _describe_found(found), "" if harmless else replace)
    if not found.validated:
        mend = f"ALTER TABLE public.{expected.table} VALIDATE CONSTRAINT {quoted(found.name)}"
        yield Finding(Severity.HARMFUL, subject, "a validated foreign key", f"{found.name} NOT VALID", mend)


def _targets_user_credits(key: FoundForeignKey) -> bool:
    return key.target == "user_credits"


def _into_user_credits(table: str, key: FoundForeignKey) -> Finding:
    subject = f"{table}.{', '.join(key.columns)}"
    rule = "foreign keys to users.id, never to user_credits"
    return Finding(Severity.HARMFUL, subject, rule, _describe_found(key), _drop(table, key))


def _indexes(expected: Table, found: FoundTable) -> Iterator[Finding]:
    ours = {index.name for index in expected.indexes}
    there = {index.name for index in found.indexes}
    for name in sorted(ours - there):
        yield Finding(
            Severity.HARMLESS, name, f"an index on {expected.name}", "missing", "`fltr-pipeline db init` adds it"
        )
    for index in found.indexes:
        specified = index.primary or index.name in ours or (index.key and set(index.columns) <= set(expected.unique))
        if not specified:
            kind = "a unique index" if index.key else "an index"
            on = f"{expected.name} ({', '.join(index.columns)})"
            yield Finding(Severity.HARMLESS, index.name, "not in the specification", f"{kind} on {on}")


def _describe(key: ForeignKey) -> str:
    return _reference(key.target, (key.target_column,), key.on_delete)


def _describe_found(key: FoundForeignKey) -> str:
    return _reference(key.target, key.target_columns, key.on_delete)


def _reference(target: str, columns: tuple[str, ...], on_delete: OnDelete) -> str:
    return f"→ {target}.{', '.join(columns)} ON DELETE {on_delete}"


def _add(key: ForeignKey) -> str:
    return (
        f"ALTER TABLE public.{key.table} ADD CONSTRAINT {key.name} FOREIGN KEY ({key.column}) "
        f"REFERENCES public.{key.target} ({key.target_column}) ON DELETE {key.on_delete}"
    )


def _drop(table: str, key: FoundForeignKey) -> str:
    return f"ALTER TABLE public.{quoted(table)} DROP CONSTRAINT {quoted(key.name)}"
