"""Who may do what with some schemas: what a role lacks to dump and rebuild them, and what others lose when it does.

Belongs here: reading it, as any role may. Does not: granting anything.
"""

from collections.abc import Sequence

from fltr_pipeline.stores.schema.connection import Connection

# `pg_dump` reads the whole database, whatever is dropped of it. Extensions' tables are not in a dump.
LACKING = """
WITH mine AS (
    SELECT oid, nspname, nspowner FROM pg_namespace WHERE nspname = ANY(%(schemas)s)
), used AS (
    SELECT c.oid, c.relkind, c.relnamespace, n.nspname, has_schema_privilege(n.oid, 'USAGE') AS entered,
           has_table_privilege(c.oid, 'SELECT') AS readable
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
)
SELECT 'CREATE on database ' || quote_ident(current_database())
    WHERE NOT has_database_privilege(current_database(), 'CREATE')
UNION ALL SELECT 'ownership of schema ' || quote_ident(nspname) FROM mine WHERE NOT pg_has_role(nspowner, 'USAGE')
UNION ALL SELECT DISTINCT 'USAGE on schema ' || quote_ident(nspname) FROM used WHERE NOT entered
UNION ALL SELECT 'SELECT on ' || oid::regclass FROM used WHERE entered AND NOT readable
UNION ALL SELECT 'every row of ' || oid::regclass || ', which has policies' FROM used WHERE row_security_active(oid)
UNION ALL SELECT 'TRUNCATE on ' || oid::regclass || ', to lock it' FROM used
    WHERE relkind <> 'S' AND relnamespace IN (SELECT oid FROM mine) AND readable
      AND NOT has_table_privilege(oid, 'UPDATE, DELETE, TRUNCATE')
"""

# Everybody may use a schema `public` that is made anew; and who made it all owns it.
GIVEN = """
WITH me AS (
    SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user
), mine AS (
    SELECT oid, nspname, nspowner, nspacl, 'SCHEMA ' || quote_ident(nspname) AS name
    FROM pg_namespace WHERE nspname = ANY(%(schemas)s)
), kept AS (
    SELECT c.oid, c.relowner, c.relacl, 'TABLE ' || quote_ident(mine.nspname) || '.' || quote_ident(c.relname) AS name
    FROM pg_class c JOIN mine ON mine.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND (mine.nspname <> 'public' OR c.relname = ANY(%(tables)s))
), acls (command, target, owner, acl, columns) AS (
    SELECT '', name, nspowner, nspacl, '' FROM mine
    UNION ALL SELECT '', name, relowner, relacl, '' FROM kept
    UNION ALL SELECT '', kept.name, kept.relowner, a.attacl, ' (' || quote_ident(a.attname) || ')'
    FROM kept JOIN pg_attribute a ON a.attrelid = kept.oid AND NOT a.attisdropped
    UNION ALL SELECT 'ALTER DEFAULT PRIVILEGES FOR ROLE ' || quote_ident(pg_get_userbyid(d.defaclrole))
                     || ' IN ' || mine.name || ' ',
                     CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS'
                                          ELSE 'TYPES' END,
                     NULL, d.defaclacl, ''
    FROM pg_default_acl d JOIN mine ON mine.oid = d.defaclnamespace
)
SELECT command || 'GRANT ' || string_agg(a.privilege_type || columns, ', ' ORDER BY a.privilege_type || columns)
       || ' ON ' || target || ' TO '
       || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
       || CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
FROM acls CROSS JOIN aclexplode(acls.acl) a
WHERE command <> '' OR (
    a.grantee NOT IN (owner, (TABLE me)) AND (target, a.grantee, a.privilege_type) <> ('SCHEMA public', 0, 'USAGE'))
GROUP BY command, target, a.grantee, a.is_grantable
UNION ALL SELECT 'REVOKE USAGE ON SCHEMA public FROM PUBLIC' FROM mine
WHERE nspname = 'public' AND NOT EXISTS (
    SELECT FROM aclexplode(nspacl) a WHERE (a.grantee, a.privilege_type) = (0, 'USAGE'))
UNION ALL SELECT 'ALTER ' || name || ' OWNER TO ' || quote_ident(pg_get_userbyid(owner))
FROM (SELECT name, nspowner FROM mine UNION ALL SELECT name, relowner FROM kept) owned (name, owner)
WHERE owner NOT IN (TABLE me) AND NOT (owner = 'pg_database_owner'::regrole AND (TABLE me) = (
    SELECT d.datdba FROM pg_database d WHERE d.datname = current_database()))
ORDER BY 1
"""


def lacking(connection: Connection, schemas: Sequence[str]) -> tuple[str, ...]:
    """What the connected role may not do, and would have to, to dump the database and to make the schemas anew."""
    return tuple(words for (words,) in connection.execute(LACKING, {"schemas": list(schemas)}))


def given(connection: Connection, schemas: Sequence[str], tables: Sequence[str]) -> tuple[str, ...]:
    """Statements that give others again what they have now, once the connected role has made the schemas anew.

    Of schema `public` only these tables are there again, of another one all.
    """
    return tuple(words for (words,) in connection.execute(GIVEN, {"schemas": list(schemas), "tables": list(tables)}))
