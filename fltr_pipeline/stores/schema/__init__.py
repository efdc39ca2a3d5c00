"""The schemas of both databases: what they must be, making them, verifying them.

Belongs here: creating `fltr`, which is ours, and development copies of `fltr_auth`, which is the web application's.
Does not: the queries of the running pipeline (`stores.fltr`, `stores.auth`).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files

import psycopg

from fltr_pipeline.errors import ConfigurationError, SchemaDrift
from fltr_pipeline.stores.schema import catalog, ddl, versions
from fltr_pipeline.stores.schema.connection import Connection, transaction
from fltr_pipeline.stores.schema.specification import FLTR, FLTR_AUTH
from fltr_pipeline.stores.schema.verify import verify_auth, verify_fltr

AUTH_ROLE = "fltr_pipeline"
"""The least-privilege role of `auth_role.sql`."""

# Held until the transaction ends: a second process waits, then finds everything there.
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('fltr_pipeline.stores.schema', 0))"
TRY_LOCK = LOCK.replace("pg_advisory_xact_lock", "pg_try_advisory_xact_lock")

# A database's own schema `public` may be used by everybody; one that is created anew may not, unless it is said.
DROP = """
DROP SCHEMA IF EXISTS public CASCADE;
DROP SCHEMA IF EXISTS pipeline CASCADE;
CREATE SCHEMA public;
GRANT USAGE ON SCHEMA public TO PUBLIC
"""

NOTE_COLLECTION = "INSERT INTO pipeline.collections (name, model) VALUES (%s, %s)"

ROLE_PASSWORD = "SELECT set_config('fltr.role_password', %s, true)"  # noqa: S105 - the setting's name

_NOT_AS_SPECIFIED = (
    psycopg.errors.UndefinedColumn,
    psycopg.errors.DatatypeMismatch,
    psycopg.errors.InvalidForeignKey,
    psycopg.errors.WrongObjectType,
)


def init_databases(fltr_admin_url: str, auth_admin_url: str) -> None:
    """Both databases of a development stack: `init_fltr`, then `init_auth_copy`."""
    init_fltr(fltr_admin_url)
    init_auth_copy(auth_admin_url)


def init_fltr(url: str) -> None:
    """Creates what `fltr` lacks: the specification's tables, our indexes, schema `pipeline` in its newest version.

    One transaction, idempotent, and safe when several processes do it at once.

    Raises:
        SchemaDrift: a table that is there can't be built upon.
        ConfigurationError: the role may not create tables.
        StoreUnavailable: the server does not answer.
    """
    with explained(FLTR.name), transaction(url) as connection:
        create_fltr(connection)


def create_fltr(connection: Connection) -> None:
    """As `init_fltr`, within the caller's transaction."""
    connection.execute(LOCK)
    connection.execute("CREATE SCHEMA IF NOT EXISTS public")
    for statement in ddl.statements(FLTR, present=catalog.read(connection).relations):
        connection.execute(statement.encode())
    versions.bring_forward(connection)


def recreate_fltr(connection: Connection, collections: Iterable[tuple[str, str | None]] = ()) -> None:
    """Drops schemas `public` and `pipeline` with all that is in them and creates them anew.

    All within the caller's transaction. `collections`: those in which vectors may be left, each with its model's name.

    Raises:
        SchemaDrift: what was made is not as specified; the caller rolls back.
    """
    connection.execute(DROP)
    create_fltr(connection)
    verify_fltr(connection).require()
    for name, model in collections:
        connection.execute(NOTE_COLLECTION, (name, model))


def init_auth_copy(admin_url: str, role_password: str | None = None) -> None:
    """Makes an empty database a development copy of `fltr_auth`, and grants our role its rights.

    One transaction, idempotent, and safe when several processes do it at once. A database that has tables is
    left as it is, but for the grants.

    Raises:
        SchemaDrift: it has tables, and they are not as specified.
        ConfigurationError: the role may not create tables or roles.
        StoreUnavailable: the server does not answer.
    """
    with explained(FLTR_AUTH.name), transaction(admin_url) as connection:
        connection.execute(LOCK)
        if not catalog.read(connection).relations:
            for statement in ddl.statements(FLTR_AUTH):
                connection.execute(statement.encode())
        elif not (report := verify_auth(connection)).conforms:
            drift = ", ".join(finding.subject for finding in report.harmful)
            raise SchemaDrift(
                f"{FLTR_AUTH.name} has tables that are not as specified ({drift}), and nothing is ever added "
                "to an existing one: take an empty database for a development copy, or mend this one"
            )
        if role_password is not None:
            connection.execute(ROLE_PASSWORD, (role_password,))
        connection.execute(_sql("auth_role.sql"))


def _sql(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


@contextmanager
def explained(database: str) -> Iterator[None]:
    """What PostgreSQL refuses, in the words of the one who has to act."""
    try:
        yield
    except _NOT_AS_SPECIFIED as error:
        raise SchemaDrift(
            f"a table in {database} is not as specified, nothing was changed ({error.diag.message_primary}): "
            "`fltr-pipeline db verify` lists the differences"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the role in the URL of {database} may not do this ({error.diag.message_primary}): "
            "give an administrator's URL"
        ) from error
