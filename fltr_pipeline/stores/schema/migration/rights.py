"""Who owns the tables of the migration, who else may read or write them, and what the connected role may not do.

Belongs here: reading that, the steps that give `user_credits` the owner and the rights of `users`. Does not: rows.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from fltr_pipeline.stores.schema.catalog import quoted
from fltr_pipeline.stores.schema.connection import Connection

# Somebody who is not a superuser can give a table away only to a role that they could be, and that may create tables
# there. From version 16 on, being a member is not enough for that.
ROLE = """
SELECT current_user::text, pg_is_in_recovery(), has_schema_privilege(n.oid, 'CREATE'),
       r.rolsuper OR has_schema_privilege(u.relowner, n.oid, 'CREATE'),
       pg_has_role(u.relowner, CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER'
                                    ELSE 'SET' END)
FROM pg_namespace n
JOIN pg_roles r ON r.rolname = current_user
JOIN pg_class u ON u.oid = to_regclass('public.users')
WHERE n.nspname = 'public'
"""

TABLES = """
SELECT c.relname::text, pg_get_userbyid(c.relowner)::text, pg_has_role(c.relowner, 'USAGE'), c.relrowsecurity,
       c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhparent, inhrelid))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relname = ANY(%(tables)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY 1
"""

GRANTS = """
WITH lists AS (
    SELECT c.oid, c.relowner, NULL::text AS attname, c.relacl AS list FROM pg_class c
    UNION ALL SELECT c.oid, c.relowner, a.attname::text, a.attacl
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
)
SELECT DISTINCT r.rolname::text, g.privilege_type, l.attname
FROM lists l CROSS JOIN aclexplode(l.list) g LEFT JOIN pg_roles r ON r.oid = g.grantee
WHERE l.oid = to_regclass(%(table)s) AND g.grantee <> l.relowner AND (g.grantee = 0 OR r.oid IS NOT NULL)
  AND g.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
ORDER BY 1, 2, 3
"""

# What pg_dump must read: rows of tables, the state of sequences. Policies make it fail. Of materialized views it writes
# how to fill them.
UNREADABLE = """
SELECT n.nspname::text, c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND (NOT has_schema_privilege(n.oid, 'USAGE') OR NOT has_table_privilege(c.oid, 'SELECT')
       OR row_security_active(c.oid))
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2
"""

_SHOWN = 10
"""Relations that a message names."""

_MOVED = {
    "id": "user_id", "credits": "credits", "total_credits_purchased": "total_credits_purchased", "team_id": "team_id",
    "created_at": "created_at", "updated_at": "updated_at",
}  # fmt: skip
"""Columns of `users` → of `user_credits`."""


@dataclass(frozen=True, slots=True)
class OwnedTable:
    """One of the tables, and whose it is."""

    name: str
    owner: str
    ours: bool
    """Whether the connected role has the owner's rights."""
    row_security: bool
    """Whether policies decide who sees which row."""
    ordinary: bool
    """Whether it is a table on its own: no view, no partitions, no inheritance."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a role that isn't the owner may do."""

    role: str | None
    """None: everybody."""
    privilege: str
    column: str | None
    """None: the whole table."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What was found. Without a table `users` nearly all of it is empty."""

    role: str
    standby: bool
    """Whether the server only follows another one."""
    may_create: bool
    """Whether the connected role may create tables in `public`."""
    owner_may_create: bool
    """Whether that keeps nobody from giving tables to the owner of `users`."""
    may_give: bool
    """Whether the connected role could be the owner of `users`."""
    tables: tuple[OwnedTable, ...]
    users: tuple[Grant, ...]
    accounts: tuple[Grant, ...]
    unreadable: tuple[str, ...]
    """What a dump of `public` needs and the connected role may not read."""
    closed: tuple[str, ...]
    """Other schemas, as a managed server's own, in which it may not read everything: a dump must leave them out."""

    def table(self, name: str) -> OwnedTable | None:
        """The table of this name in `public`, if there is one."""
        return next((table for table in self.tables if table.name == name), None)

    @property
    def owner(self) -> str | None:
        """Of `users`; None when there is none."""
        users = self.table("users")
        return users.owner if users else None

    @property
    def row_security(self) -> bool:
        """Whether policies decide who sees which user."""
        users = self.table("users")
        return users is not None and users.row_security

    def foreign(self, name: str) -> bool:
        """Whether that table belongs, or once created would belong, to another role than `users` does."""
        table = self.table(name)
        return self.owner is not None and self.owner != (table.owner if table else self.role)

    @property
    def missing(self) -> tuple[Grant, ...]:
        """What roles may do with `users`, or with the columns that leave it, and not with `user_credits`."""
        whole = {(g.role, g.privilege) for g in self.users if g.column is None}
        leaving = {g.role for g in self.users if g.column in ("credits", "total_credits_purchased", "team_id")}
        wanted = [
            Grant(g.role, g.privilege, _MOVED[g.column] if g.column else None)
            for g in self.users
            if g.column is None or (g.role in leaving and g.column in _MOVED and (g.role, g.privilege) not in whole)
        ]
        return tuple(g for g in wanted if not {g, Grant(g.role, g.privilege, None)} & {*self.accounts})

    def obstacles(self) -> Iterator[str]:
        """Why the connected role can neither change the tables nor dump the database."""
        if self.standby:
            yield "the server is a standby, which follows another: give the URL of the primary"
        for table in self.tables:
            if not table.ours:
                yield (
                    f"{self.role} doesn't own {table.name}: give the URL of {table.owner} or of an administrator, "
                    f"or GRANT {quoted(table.owner)} TO {quoted(self.role)}"
                )
        if self.unreadable:
            more = f" and {len(self.unreadable) - _SHOWN} more" if len(self.unreadable) > _SHOWN else ""
            yield (
                f"{self.role} can't read {', '.join(self.unreadable[:_SHOWN])}{more}, which the dump needs: "
                "GRANT USAGE on the schema and SELECT, or BYPASSRLS where policies are why"
            )

    def notices(self) -> Iterator[str]:
        """What an administrator should look at."""
        if self.closed:
            yield (
                f"a dump by {self.role} leaves out {'schema' if len(self.closed) == 1 else 'schemas'} "
                f"{', '.join(self.closed)}, where it can't read everything: nothing there is changed"
            )
        accounts = self.table("user_credits")
        if self.row_security and (accounts is None or accounts.row_security):
            yield (
                "users has row-level security: user_credits gets it too, but neither policies nor rights; "
                "give it both before the application starts"
            )
        elif self.row_security:
            yield "users has row-level security, and user_credits has none: whoever may read it sees every balance"
        if accounts and accounts.owner != self.owner:
            yield f"user_credits belongs to {accounts.owner}, users to {self.owner}"

    def obstacles_to_making(self, names: Sequence[str]) -> Iterator[str]:
        """Why the connected role can't have tables of these names that belong to the owner of `users`."""
        made = [name for name in names if self.table(name) is None]
        if made and not self.may_create:
            way = f"GRANT CREATE ON SCHEMA public TO {quoted(self.role)}"
            yield f"{self.role} may not create {' and '.join(made)}: {way}"
        if self.owner is None or not any(self.foreign(name) for name in names):
            return
        if not self.owner_may_create:
            yield f"{self.owner} can be given no table: GRANT CREATE ON SCHEMA public TO {quoted(self.owner)}"
        if not self.may_give:
            yield f"{self.role} can't give a table to {self.owner}: GRANT {quoted(self.owner)} TO {quoted(self.role)}"


def read(connection: Connection, names: Collection[str]) -> Rights:
    """Reads the catalogue; any role may."""
    about = connection.execute(ROLE).fetchone() or ("", False, False, False, False)
    role, standby, may_create, owner_may_create, may_give = about
    grants = [
        tuple(Grant(*row) for row in connection.execute(GRANTS, {"table": f"public.{table}"}))
        for table in ("users", "user_credits")
    ]
    unreadable = connection.execute(UNREADABLE).fetchall()
    return Rights(
        role=role,
        standby=standby,
        may_create=may_create,
        owner_may_create=owner_may_create,
        may_give=may_give,
        tables=tuple(OwnedTable(*row) for row in connection.execute(TABLES, {"tables": list(names)})),
        users=grants[0],
        accounts=grants[1],
        unreadable=tuple(name for schema, name in unreadable if schema == "public"),
        closed=tuple(sorted({schema for schema, _ in unreadable} - {"public"})),
    )
