"""Tests meet a database as if it were just made, whatever an earlier test did to the one that they get."""

from collections.abc import Iterator

import psycopg
import pytest

from fltr_pipeline_tests.databases import Databases

NEW = """
CREATE SCHEMA s;
CREATE TABLE s.parents (id serial PRIMARY KEY);
CREATE TABLE s.children (parent int REFERENCES s.parents);
CREATE TABLE known (word text);
INSERT INTO known VALUES ('a'), ('b')
"""
PRISTINE = [(1, 0, ["a", "b"])]
LOOK = """
SELECT nextval('s.parents_id_seq'), (SELECT count(*) FROM s.parents) + (SELECT count(*) FROM s.children),
       (SELECT array_agg(word ORDER BY word) FROM known)
"""


@pytest.fixture(scope="module")
def template(postgres_server: str) -> Iterator[str]:
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh_template")
        with psycopg.connect(url(postgres_server, "fresh_template")) as new:
            new.execute(NEW)
        yield "fresh_template"
        connection.execute("DROP DATABASE fresh_template WITH (FORCE)")


def url(server: str, name: str) -> str:
    return server.replace("/postgres?", f"/{name}?", 1)


def execute(database: str, statement: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(statement.encode())


def look(database: str) -> tuple[int, list[object]]:
    """The database's identity, and what can be seen in it."""
    with psycopg.connect(database) as connection:
        found = connection.execute("SELECT oid::int FROM pg_database WHERE datname = current_database()").fetchall()
        return found[0][0], list(connection.execute(LOOK).fetchall())


def test_rows_and_sequences_are_gone_and_the_old_name_too(postgres_server: str, template: str) -> None:
    databases = Databases(postgres_server)
    with databases.copy(template) as first:
        oid, seen = look(first)
        assert seen == PRISTINE
        execute(first, "INSERT INTO s.parents DEFAULT VALUES; INSERT INTO s.children SELECT id FROM s.parents")
        left_open = psycopg.connect(first)
        left_open.execute("LOCK TABLE s.parents")
    with databases.copy(template) as second:
        assert second != first
        assert look(second) == (oid, PRISTINE)
        with databases.copy(template) as beside:
            assert look(beside) != (oid, PRISTINE)
            assert look(beside)[0] != oid
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(first)
    with pytest.raises(psycopg.OperationalError):
        left_open.execute("SELECT 1")
    left_open.close()


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE s.children ADD COLUMN name text",
        "ALTER TABLE s.children DROP CONSTRAINT children_parent_fkey",
        "DROP TABLE s.children",
        "DROP TABLE known",
        "CREATE INDEX ON s.children (parent)",
        "CREATE FUNCTION one() RETURNS int RETURN 1",
        "GRANT SELECT ON s.parents TO public",
        "ALTER TABLE s.parents DISABLE TRIGGER ALL",
        "COMMENT ON SCHEMA s IS 'changed'",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 1024', current_database()); END $$",
        "DO $$ BEGIN EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM public', current_database()); END $$",
        "UPDATE known SET word = 'c' WHERE word = 'a'",
        "DELETE FROM known",
        "INSERT INTO s.parents SELECT FROM generate_series(1, 100000)",
    ],
)
def test_what_can_not_be_emptied_is_not_used_again(postgres_server: str, template: str, statement: str) -> None:
    databases = Databases(postgres_server)
    with databases.copy(template) as first:
        before, _ = look(first)
        execute(first, statement)
    with databases.copy(template) as second:
        after, seen = look(second)
        assert after != before
        assert seen == PRISTINE
