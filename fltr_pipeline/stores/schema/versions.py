"""The version of our own schema `pipeline`: numbered SQL files, each applied once, in order.

Belongs here: which steps there are, which a database has had, applying the others. Does not: the steps themselves
(`pipeline/*.sql`), schema `public` (`specification`).

`CREATE ... IF NOT EXISTS` changes nothing of a table, index or CHECK that is there, so every change is a step of its
own. A step that was released is never edited, and may be run twice without harm.
"""

from functools import cache
from importlib.resources import files

from fltr_pipeline.errors import SchemaDrift
from fltr_pipeline.stores.schema.connection import Connection

MAKE = """
CREATE SCHEMA IF NOT EXISTS pipeline;
CREATE TABLE IF NOT EXISTS pipeline.schema_version (
    version     integer PRIMARY KEY,
    applied_at  timestamptz NOT NULL DEFAULT now()
)
"""
IS_MADE = "SELECT to_regclass('pipeline.schema_version') IS NOT NULL"
APPLIED = "SELECT coalesce(max(version), 0) FROM pipeline.schema_version"
APPLY = "INSERT INTO pipeline.schema_version (version) VALUES (%s)"


@cache
def steps() -> dict[int, bytes]:
    """Version → the SQL that leads to it from the one before."""
    found = [f for f in files(__package__).joinpath("pipeline").iterdir() if f.name.endswith(".sql")]
    return {int(f.name.partition("_")[0]): f.read_bytes() for f in sorted(found, key=lambda f: f.name)}


def newest() -> int:
    """The version that this code works with."""
    return max(steps())


def applied(connection: Connection) -> int:
    """The database's version; 0 when it has none, or was made before versions were kept."""
    if not connection.execute(IS_MADE).fetchall()[0][0]:
        return 0
    return int(connection.execute(APPLIED).fetchall()[0][0])


def bring_forward(connection: Connection) -> int:
    """Applies the steps that the database has not had, within the caller's transaction; returns its version now.

    Where nothing is to be done, it only reads, and so waits for nobody.

    Raises:
        SchemaDrift: the database is newer than this code.
    """
    version = applied(connection)
    if version > newest():
        raise SchemaDrift(
            f"schema pipeline of fltr has version {version}, this program knows {newest()}: a newer one has been here; "
            "upgrade this one"
        )
    if version < newest():
        connection.execute(MAKE)
    for number, sql in steps().items():
        if number > version:
            connection.execute(sql)
            connection.execute(APPLY, (number,))
    return newest()
