"""What else in the database uses the columns that are to leave `users`: what would break, what goes, what to know.

Belongs here: finding such objects, by PostgreSQL's records of dependencies and, where it keeps none, by what the
sources of functions say. Does not: the tables themselves (`layout`), who may do what (`rights`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fltr_pipeline.stores.schema.connection import Connection

# Of what hangs on a column, some keeps it from being dropped; what has another kind of dependency as well goes with it:
# constraints, indexes, and, which nobody would notice, columns that are generated from it.
DEPENDENTS = """
SELECT a.attname::text, pg_describe_object(d.classid, d.objid, d.objsubid),
       bool_and(d.deptype = 'n') OR (d.classid = 'pg_class'::regclass AND d.objsubid <> 0)
FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass('public.users')
  AND a.attname = ANY(%(columns)s) AND d.classid <> 'pg_attrdef'::regclass
GROUP BY a.attname, d.classid, d.objid, d.objsubid ORDER BY 1, 2
"""

# No dependency is recorded of what a function's source says; of a body in standard SQL (prosqlbody) there is.
FUNCTIONS = """
SELECT p.oid::bigint, p.proname::text, p.oid::regprocedure::text,
       concat_ws(' ', pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), p.prosrc)
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.prokind IN ('f', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
ORDER BY 3
"""

TRIGGERS = """
SELECT t.tgname::text, t.tgrelid::regclass::text, t.tgrelid = to_regclass('public.users'), t.tgenabled <> 'D',
       t.tgoldtable IS NOT NULL OR t.tgnewtable IS NOT NULL, t.tgfoid::bigint,
       p.prosrc || ' ' || replace(encode(t.tgargs, 'escape'), '\\000', ' ')
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal
ORDER BY 2, 1
"""

PUBLICATIONS = """
SELECT pubname::text FROM pg_publication_tables WHERE schemaname = 'public' AND tablename = 'users' ORDER BY 1
"""

# What such a column says of the three is not shown any more once they are dropped.
KEPT_ROWS = """
SELECT c.oid::regclass || '.' || quote_ident(a.attname)
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type e ON e.oid = t.typelem
WHERE c.relkind IN ('r', 'p', 'm') AND NOT a.attisdropped
  AND to_regclass('public.users') IN (t.typrelid, e.typrelid)
ORDER BY 1
"""

REPLICA_IDENTITY = """
SELECT i.indexrelid::regclass::text FROM pg_index i
WHERE i.indrelid = to_regclass('public.users') AND i.indisreplident
  AND EXISTS (SELECT FROM pg_attribute a
              WHERE a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) AND a.attname = ANY(%(columns)s))
"""

_USERS = re.compile(r"\busers\b", re.IGNORECASE)
_ROW = r"\(?\s*(?:\b(?:new|old)\b|\$\d+)\s*\)?\s*\.\s*\*"
_LISTED_ROW = re.compile(rf"(?:\bselect\b|\bvalues\s*\(|,)\s*{_ROW}|{_ROW}\s*,", re.IGNORECASE)
"""`SELECT now(), OLD.*`: values by position, and so columns in the wrong place, or too few, once users has fewer."""
_PASSED_ROW = re.compile(r"\(\s*(?:new|old)\s*(?:\.\s*\*\s*)?[,)]", re.IGNORECASE)
"""`to_jsonb(NEW)`: goes on, with what there is."""


@dataclass(frozen=True, slots=True)
class Dependent:
    """Something that hangs on one of the columns. `blocks`: the column can't be dropped, or not without harm."""

    column: str
    what: str
    blocks: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Something of which PostgreSQL records no dependency. `blocks`: it would break, or lose what it knows."""

    what: str
    why: str
    blocks: bool


@dataclass(frozen=True, slots=True)
class Uses:
    """All that was found."""

    dependents: tuple[Dependent, ...]
    findings: tuple[Finding, ...]

    def obstacles(self) -> Iterator[str]:
        """What must be changed or go first."""
        for dependent in self.dependents:
            if dependent.blocks:
                yield f"{dependent.what} uses users.{dependent.column}: change or drop it first"
        yield from (f"{found.what} {found.why}" for found in self.findings if found.blocks)

    def notices(self) -> Iterator[str]:
        """What is good to know."""
        for dependent in self.dependents:
            if not dependent.blocks:
                yield f"{dependent.what} goes with users.{dependent.column}"
        yield from (f"{found.what} {found.why}" for found in self.findings if not found.blocks)


@dataclass(frozen=True, slots=True)
class Function:
    """A function or procedure. `text`: its source, and the types of what it takes and returns."""

    oid: int
    name: str
    signature: str
    text: str


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger. `text`: its function's source, and its arguments."""

    name: str
    table: str
    on_users: bool
    enabled: bool
    sees_tables: bool
    """Whether its function is given all changed rows as a table."""
    function: int
    text: str


def read(connection: Connection, columns: Sequence[str]) -> Uses:
    """Reads the catalogue; any role may. Without a column left to go there is nothing to find."""
    if not columns:
        return Uses((), ())
    names = {"columns": list(columns)}
    functions = [Function(*row) for row in connection.execute(FUNCTIONS)]
    triggers = [Trigger(*row) for row in connection.execute(TRIGGERS)]
    kept = [name for (name,) in connection.execute(KEPT_ROWS)]
    indexes = [name for (name,) in connection.execute(REPLICA_IDENTITY, names)]
    publications = [name for (name,) in connection.execute(PUBLICATIONS)]
    return Uses(
        dependents=tuple(Dependent(*row) for row in connection.execute(DEPENDENTS, names)),
        findings=(
            *of_sources(functions, triggers, columns),
            *(Finding(f"column {name}", "keeps whole rows of users: copy what they say elsewhere first", True)
              for name in kept),
            *(Finding(f"index {name}", "is how replicas tell users apart: choose another REPLICA IDENTITY first", True)
              for name in indexes),
            *(Finding(f"publication {name}", "has users: subscribers lose the columns, and need user_credits", False)
              for name in publications),
        ),
    )  # fmt: skip


def of_sources(functions: Sequence[Function], triggers: Sequence[Trigger], columns: Sequence[str]) -> Iterator[Finding]:
    """A trigger fails, or does the wrong thing, at the next change of a row; a function only once somebody calls it."""
    words = re.compile(rf"\b(?:{'|'.join(columns)})\b", re.IGNORECASE)
    mentioning = [f for f in functions if _USERS.search(f.text) and words.search(f.text)]
    reaching = _callers(functions, mentioning)
    run_by_triggers = {trigger.function for trigger in triggers}
    for trigger in triggers:
        mentions = trigger.function in reaching or (trigger.on_users and words.search(trigger.text) is not None)
        yield from _of_trigger(trigger, mentions=mentions)
    for function in mentioning:
        if function.oid not in run_by_triggers:
            yield Finding(f"function {function.signature}", "mentions users and a column that is to go", False)


def _callers(functions: Sequence[Function], called: Sequence[Function]) -> frozenset[int]:
    """These, and all that call one of them, directly or not, as far as their sources say."""
    found = {function.oid for function in called}
    names = {function.name for function in called}
    while names:
        calls = re.compile(rf'\b(?:{"|".join(map(re.escape, names))})"?\s*\(', re.IGNORECASE)
        more = [f for f in functions if f.oid not in found and calls.search(f.text)]
        found |= {function.oid for function in more}
        names = {function.name for function in more}
    return frozenset(found)


def _of_trigger(trigger: Trigger, *, mentions: bool) -> Iterator[Finding]:
    what = f"trigger {trigger.name} on {trigger.table}"
    lists_rows = trigger.on_users and _LISTED_ROW.search(trigger.text) is not None
    if mentions or lists_rows:
        why = "has a function that mentions a column that is to go" if mentions else "writes whole rows of users"
        way = "change, drop or disable it first" if trigger.enabled else "change it before it is enabled again"
        yield Finding(what, f"{why}: {way}", trigger.enabled)
    elif trigger.on_users and (trigger.sees_tables or _PASSED_ROW.search(trigger.text)):
        yield Finding(what, "passes whole rows of users on, which will lack the columns", False)
