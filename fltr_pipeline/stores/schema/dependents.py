"""What lies outside some schemas and falls with them, as `DROP SCHEMA ... CASCADE` would have it.

Belongs here: following PostgreSQL's own dependencies, read-only. Does not: dropping, what lies inside (`survey`).
"""

from collections.abc import Sequence

from fltr_pipeline.stores.schema.connection import Connection

# As PostgreSQL's own deletion goes: from each object to those that depend on it, and from a part, or a member of an
# extension, to the whole. `subid` is a column of a table; 0 is all of it. Served by pg_depend's two indexes.
#
# Left out is what is only a part of something that falls, as a view's rule and type, a column's default, an index. But
# what has a schema of its own, as a partition there, is no mere part of a table here; nor is what is published.
OUTSIDE = """
WITH RECURSIVE mine AS (
    SELECT oid, nspname FROM pg_namespace WHERE nspname = ANY(%(schemas)s)
), gone (classid, objid, subid) AS (
    SELECT 'pg_namespace'::regclass::oid, oid, 0 FROM mine
  UNION
    SELECT next.* FROM gone CROSS JOIN LATERAL (
        SELECT d.classid, d.objid, d.objsubid FROM pg_depend d
        WHERE d.refclassid = gone.classid AND d.refobjid = gone.objid AND gone.subid IN (0, d.refobjsubid)
      UNION ALL
        SELECT d.refclassid, d.refobjid, d.refobjsubid FROM pg_depend d
        WHERE d.classid = gone.classid AND d.objid = gone.objid AND d.objsubid = gone.subid AND d.deptype IN ('i', 'e')
    ) next
), named AS (
    SELECT gone.*, i.schema FROM gone CROSS JOIN LATERAL pg_identify_object(classid, objid, subid) i
    WHERE i.schema IS NULL OR i.schema NOT IN (SELECT nspname FROM mine)
)
SELECT pg_describe_object(classid, objid, subid) FROM named
WHERE classid <> 'pg_namespace'::regclass AND (
    classid IN ('pg_publication_rel'::regclass, 'pg_publication_namespace'::regclass)
    OR NOT EXISTS (
        SELECT FROM pg_depend d
        JOIN gone whole
          ON whole.classid = d.refclassid AND whole.objid = d.refobjid AND whole.subid IN (0, d.refobjsubid)
        LEFT JOIN named AS other ON (other.classid, other.objid, other.subid)
                                  = (whole.classid, whole.objid, whole.subid)
        WHERE (d.classid, d.objid) = (named.classid, named.objid) AND d.objsubid IN (0, named.subid)
          AND (whole.classid, whole.objid) <> (named.classid, named.objid)
          AND (d.deptype = 'i'
               OR d.deptype IN ('a', 'e', 'P', 'S') AND (named.schema IS NULL OR other.objid IS NOT NULL))))
UNION
SELECT format('table %%s of subscription %%s', r.srrelid::regclass, s.subname)
FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid JOIN pg_class c ON c.oid = r.srrelid
WHERE c.relnamespace IN (SELECT oid FROM mine)
ORDER BY 1
"""


def outside(connection: Connection, schemas: Sequence[str]) -> tuple[str, ...]:
    """In PostgreSQL's own words, as `view reports.recent` or `column mood of table reports.days`."""
    return tuple(words for (words,) in connection.execute(OUTSIDE, {"schemas": list(schemas)}))
