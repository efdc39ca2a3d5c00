"""What a layout means: the state of the migration, the steps that are left, what forbids them, what to know.

Belongs here: pure functions from a `Layout`. Does not: reading it (`layout`), running the steps (`change`).

The steps are derived from what is missing, so that one that was done already, by whomever, is never done again: no step
left is the state `done`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby

from psycopg import sql

from fltr_pipeline.stores.schema import ddl
from fltr_pipeline.stores.schema.catalog import Catalog, FoundForeignKey, FoundTable
from fltr_pipeline.stores.schema.compare import Severity, differences
from fltr_pipeline.stores.schema.migration.layout import COLUMNS, JOURNAL, Layout
from fltr_pipeline.stores.schema.specification import FLTR_AUTH, IDENTIFIER, Database, ForeignKey, OnDelete, Table

USERS, TEAMS, USER_CREDITS = (FLTR_AUTH.table(name) for name in ("users", "teams", "user_credits"))
_JOURNAL = FLTR_AUTH.table(JOURNAL)

_TYPES = {
    "credits": ("smallint", "integer", "bigint"),
    "total_credits_purchased": ("smallint", "integer", "bigint"),
    "team_id": (IDENTIFIER.sql, *IDENTIFIER.also),
}

# NULL credits are 0. An id of a team that is not there finds none: the run was refused unless that is wanted.
COPY = """
INSERT INTO public.user_credits (user_id, credits, total_credits_purchased, team_id, created_at, updated_at)
SELECT u.id, coalesce(u.credits, 0), coalesce(u.total_credits_purchased, 0), t.id,
       coalesce(u.created_at, now() AT TIME ZONE 'UTC'), coalesce(u.updated_at, now() AT TIME ZONE 'UTC')
FROM public.users u LEFT JOIN public.teams t ON t.id::text = u.team_id::text
ON CONFLICT (user_id) DO NOTHING
"""

EMPTY_ACCOUNTS = """
INSERT INTO public.user_credits (user_id) SELECT id FROM public.users ON CONFLICT (user_id) DO NOTHING
"""

COPY_BACK = """
UPDATE public.users u
SET credits = c.credits, total_credits_purchased = c.total_credits_purchased, team_id = c.team_id
FROM public.user_credits c WHERE c.user_id = u.id
"""


class State(StrEnum):
    """How far the migration is."""

    FRESH = "fresh"
    """Balances are in `users`, and there is no `user_credits`."""
    PARTIAL = "partial"
    """Something was done, by hand or by a tool, and something is left to do."""
    DONE = "done"
    UNKNOWN = "unknown"
    """Not a database that this migration is for; the reasons are told."""


@dataclass(frozen=True, slots=True)
class Step:
    """A statement, and what it does in words."""

    words: str
    statement: str
    drops: bool = False
    """Whether the copy must have been checked before."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A judgement. In the states `done` and `unknown` there are no steps."""

    state: State
    steps: tuple[Step, ...]
    obstacles: tuple[str, ...]
    """Why the steps can't be taken: the reasons of `unknown`, and what stands in the way otherwise."""
    notices: tuple[str, ...]


def judge(layout: Layout) -> Shape:
    """The state of the migration, and what is left to do."""
    notices = tuple(_notices(layout))
    if reasons := tuple(_reasons(layout)):
        return Shape(State.UNKNOWN, (), reasons, notices)
    steps = tuple(_steps(layout))
    if not steps:
        return Shape(State.DONE, (), (), notices)
    state = State.PARTIAL if layout.table(USER_CREDITS.name) else State.FRESH
    return Shape(state, steps, tuple(_obstacles(layout)), notices)


def rollback_steps(layout: Layout) -> tuple[Step, ...]:
    """Statements that put the balances back into `users`; `user_credits` must be as specified and the columns gone."""
    kinds = layout.types(USER_CREDITS.name)
    defaults = {"credits": " DEFAULT 0", "total_credits_purchased": " DEFAULT 0", "team_id": ""}
    columns = ", ".join(f"ADD COLUMN {name} {kinds[name]}{default}" for name, default in defaults.items())
    return (
        Step("give users without a row in user_credits one of 0", EMPTY_ACCOUNTS.strip()),
        Step("give users the three columns again", f"ALTER TABLE public.users {columns}"),
        Step("copy the current balances into them", COPY_BACK.strip()),
        Step("drop user_credits", "DROP TABLE public.user_credits", drops=True),
    )


# --- whether this is a database to migrate ----------------------------------------------------------------------------


def _reasons(layout: Layout) -> Iterator[str]:
    if layout.rights.owner is None:
        yield "there is no table users in public"
        return
    if inherited := [
        t.name for t in layout.rights.tables if t.name in (USERS.name, USER_CREDITS.name) and not t.ordinary
    ]:
        yield from (f"{name} is not a table on its own (a view, partitions or inheritance)" for name in inherited)
        return
    yield from _users(layout)
    for name in (USER_CREDITS.name, JOURNAL):
        yield from _taken(layout, name)
    accounts = layout.table(USER_CREDITS.name)
    if accounts is not None:
        yield from _harmful(replace(USER_CREDITS, foreign_keys=()), replace(accounts, foreign_keys=()))
        yield from _wrong_references(accounts)
    elif missing := [name for name in COLUMNS if name not in layout.present]:
        yield f"users has no {', no '.join(missing)}, and there is no {USER_CREDITS.name}: no balances to be found"
    if journal := layout.table(JOURNAL):
        yield from _harmful(_JOURNAL, journal)


def _taken(layout: Layout, name: str) -> Iterator[str]:
    if layout.table(name) is None:
        if name in layout.taken:
            yield f"{name} is not a table, but something in public has that name"
        if (key := f"{name}_pkey") in layout.taken:
            yield f"something in public is called {key}, as the key of {name} is to be"


def _users(layout: Layout) -> Iterator[str]:
    """The columns that the migration reads; the rest of both tables is not its business."""
    for table, names in ((USERS, {"id", "created_at", "updated_at"}), (TEAMS, {"id"})):
        of_interest = tuple(column for column in table.columns if column.name in names)
        narrowed = replace(table, columns=of_interest, unique=(), foreign_keys=(), forbidden=())
        if found := layout.table(table.name):
            yield from _harmful(narrowed, found)
        else:
            yield f"there is no table {table.name} in public"
    for name in layout.present:
        kind = layout.types(USERS.name)[name]
        if re.sub(r"\(\d+\)", "", kind) not in _TYPES[name]:
            yield f"users.{name} is of type {kind}: expected {' or '.join(_TYPES[name])}"


def _harmful(expected: Table, found: FoundTable) -> Iterator[str]:
    for finding in differences(Database(FLTR_AUTH.name, False, (expected,)), Catalog((found,))):
        if finding.severity is Severity.HARMFUL:
            yield f"{finding.subject}: expected {finding.expected}, found {finding.found}"


def _wrong_references(accounts: FoundTable) -> Iterator[str]:
    for key in USER_CREDITS.foreign_keys:
        for found in _of_column(accounts, key):
            if not _right(key, found):
                yield (
                    f"{found.name} is not the foreign key {key.column} → {key.target}.{key.target_column} "
                    f"ON DELETE {key.on_delete}"
                )


def _of_column(table: FoundTable, key: ForeignKey) -> list[FoundForeignKey]:
    return [found for found in table.foreign_keys if found.columns == (key.column,)]


def _right(key: ForeignKey, found: FoundForeignKey) -> bool:
    """RESTRICT differs from NO ACTION only in when it refuses."""
    same_rule = found.on_delete is key.on_delete or {found.on_delete, key.on_delete} == {
        OnDelete.RESTRICT,
        OnDelete.NO_ACTION,
    }
    same_target = (found.target, found.target_columns) == (key.target, (key.target_column,))
    return same_rule and same_target and found.validated


# --- what is left to do -----------------------------------------------------------------------------------------------


def _steps(layout: Layout) -> Iterator[Step]:
    missing = tuple(_missing(layout))
    if layout.table(USER_CREDITS.name) is None:
        yield from _create(layout)
    elif missing:
        # Not a reason for a run: what an administrator gave or took once all was done stays as it is.
        yield from _own(layout, USER_CREDITS.name)
        yield from _grants(layout)
    yield from missing
    if missing and layout.table(JOURNAL) is not None:
        yield from _own(layout, JOURNAL)


def _missing(layout: Layout) -> Iterator[Step]:
    accounts = layout.table(USER_CREDITS.name)
    if layout.present == COLUMNS:
        yield Step("copy the balances of users that have none there", COPY.strip())
    if accounts is not None:
        yield from _references(accounts)
    if layout.present:
        columns = ", ".join(f"DROP COLUMN {name}" for name in layout.present)
        words = f"drop users.{', users.'.join(layout.present)}"
        yield Step(words, f"ALTER TABLE public.users {columns}", drops=True)
    yield from _journal(layout)


def _create(layout: Layout) -> Iterator[Step]:
    """The ids are of the types that they refer to; owner and rights are those of `users`, whoever runs this."""
    table = USER_CREDITS
    for key in USER_CREDITS.foreign_keys:
        table = _typed(table, key.column, layout.types(key.target)[key.target_column])
    yield Step(f"create {table.name}", _ddl(table))
    yield from _own(layout, table.name)
    if layout.rights.row_security:
        yield Step(f"hide the rows of {table.name}", f"ALTER TABLE public.{table.name} ENABLE ROW LEVEL SECURITY")
    yield from _grants(layout)


def _own(layout: Layout, table: str) -> Iterator[Step]:
    owner = layout.rights.owner
    if owner is not None and layout.rights.foreign(table):
        statement = f"ALTER TABLE public.{table} OWNER TO {_quoted(owner)}"
        yield Step(f"give {table} to the owner of users", statement)


def _grants(layout: Layout) -> Iterator[Step]:
    """The rights on users mean little without its policies: with them alone, everybody would see every balance."""
    if layout.rights.row_security:
        return
    for role, grants in groupby(layout.rights.missing, key=lambda grant: grant.role):
        what = ", ".join(f"{g.privilege} ({g.column})" if g.column else g.privilege for g in grants)
        whom = "PUBLIC" if role is None else _quoted(role)
        statement = f"GRANT {what} ON public.{USER_CREDITS.name} TO {whom}"
        yield Step(f"grant {role or 'everybody'} the rights on {USER_CREDITS.name} that it has on users", statement)


def _typed(table: Table, name: str, kind: str) -> Table:
    typed = (replace(c, type=replace(c.type, sql=kind)) if c.name == name else c for c in table.columns)
    return replace(table, columns=tuple(typed))


def _ddl(table: Table) -> str:
    (statement,) = ddl.statements(Database(FLTR_AUTH.name, False, (table,)))
    return statement


def _references(accounts: FoundTable) -> Iterator[Step]:
    for key in USER_CREDITS.foreign_keys:
        found = _of_column(accounts, key)
        alter = f"ALTER TABLE public.{USER_CREDITS.name}"
        if not found:
            target = f"public.{key.target} ({key.target_column}) ON DELETE {key.on_delete}"
            statement = f"{alter} ADD CONSTRAINT {key.name} FOREIGN KEY ({key.column}) REFERENCES {target}"
            yield Step(f"add the foreign key {key.name}", statement)
        elif key.name not in {f.name for f in found}:
            statement = f"{alter} RENAME CONSTRAINT {_quoted(found[0].name)} TO {key.name}"
            yield Step(f"name {found[0].name} as Drizzle does: {key.name}", statement)


def _journal(layout: Layout) -> Iterator[Step]:
    there = layout.journal.rows if layout.journal else None
    if layout.table(JOURNAL) is None:
        yield Step(f"create {JOURNAL}", _ddl(replace(_JOURNAL, rows=())))
        yield from _own(layout, JOURNAL)
    if missing := [row for row in _JOURNAL.rows if row not in (there or ())]:
        values = sql.SQL(", ").join(sql.SQL("({}, {})").format(*row) for row in missing)
        statement = sql.SQL("INSERT INTO public.__drizzle_migrations (hash, created_at) VALUES {}").format(values)
        yield Step(f"write {len(missing)} of {len(_JOURNAL.rows)} rows into {JOURNAL}", statement.as_string(None))


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string(None)


# --- what stands in the way, and what to know -------------------------------------------------------------------------


def _obstacles(layout: Layout) -> Iterator[str]:
    yield from layout.rights.obstacles()
    yield from layout.rights.obstacles_to_making((USER_CREDITS.name, JOURNAL))
    yield from layout.uses.obstacles()


def _notices(layout: Layout) -> Iterator[str]:
    yield from layout.rights.notices()
    yield from layout.uses.notices()
    known = {created_at for _, created_at in _JOURNAL.rows}
    for journal in layout.journals:
        rows = journal.rows
        if journal.schema != "public":
            yield f"there is a {JOURNAL} in schema {journal.schema} too: the application must be configured for public"
        elif rows is None:
            yield f"public.{JOURNAL} can't be read by this role"
        elif any(created_at is None for _, created_at in rows):
            yield f"public.{JOURNAL} has a row without created_at: Drizzle will run all migrations again"
        elif later := [c for _, c in rows if c is not None and c > max(known)]:
            yield f"public.{JOURNAL} ends at {max(later)}: Drizzle skips every migration that is older than that"
