"""Creating both databases: what is made, what is left alone, several processes at once."""

import contextlib
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from fltr_pipeline.errors import ConfigurationError, InvalidAmount, SchemaDrift, StoreUnavailable
from fltr_pipeline.stores.schema import AUTH_ROLE, init_auth_copy, init_databases, init_fltr
from fltr_pipeline.stores.schema.connection import as_role, transaction
from fltr_pipeline.stores.schema.development import add_user
from fltr_pipeline.stores.schema.specification import FLTR_AUTH
from fltr_pipeline.stores.schema.verify import verify_auth, verify_fltr

NewDatabase = Callable[[], str]

TABLES = "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('public', 'pipeline') ORDER BY 1"


def rows(url: str, sql: str) -> list[tuple[object, ...]]:
    with transaction(url) as connection:
        return connection.execute(sql.encode()).fetchall()


def execute(url: str, sql: str) -> None:
    with transaction(url) as connection:
        connection.execute(sql.encode())


def test_what_is_created_verifies_without_a_single_difference(new_database: NewDatabase) -> None:
    fltr, auth = new_database(), new_database()
    init_databases(fltr, auth)
    for report in (verify_fltr(fltr), verify_auth(auth)):
        assert report.conforms
        assert report.harmless == ()


def test_a_second_time_changes_nothing(new_database: NewDatabase) -> None:
    fltr, auth = new_database(), new_database()
    init_databases(fltr, auth)
    execute(fltr, "INSERT INTO datasets (user_id, name) VALUES ('u', 'kept')")
    before = rows(fltr, TABLES)
    init_databases(fltr, auth)
    assert rows(fltr, TABLES) == before
    assert rows(fltr, "SELECT name FROM datasets") == [("kept",)]
    assert len(rows(auth, "SELECT 1 FROM __drizzle_migrations")) == 3


def test_a_second_time_waits_for_no_writer(new_database: NewDatabase) -> None:
    fltr = new_database()
    init_fltr(fltr)
    with psycopg.connect(fltr) as writer:
        writer.execute(f"ALTER DATABASE \"{writer.info.dbname}\" SET lock_timeout = '2s'".encode())
        writer.commit()
        writer.execute("INSERT INTO datasets (id, user_id, name) VALUES ('d', 'u', 'n')")
        writer.execute("INSERT INTO documents (id, dataset_id, filename) VALUES ('f', 'd', 'a.pdf')")
        writer.execute("INSERT INTO processing_jobs (document_id) VALUES ('f')")
        init_fltr(fltr)


def test_the_journal_is_as_the_document_gives_it(new_database: NewDatabase) -> None:
    auth = new_database()
    init_auth_copy(auth)
    journal = rows(auth, "SELECT hash, created_at FROM __drizzle_migrations ORDER BY id")
    assert journal == list(FLTR_AUTH.table("__drizzle_migrations").rows)


def test_urls_may_name_sqlalchemys_driver(new_database: NewDatabase) -> None:
    fltr = new_database().replace("postgresql://", "postgresql+psycopg://", 1)
    init_fltr(fltr)
    assert verify_fltr(fltr).conforms


def test_a_nuked_database_without_schema_public_is_rebuilt(new_database: NewDatabase) -> None:
    fltr = new_database()
    execute(fltr, "DROP SCHEMA public CASCADE")
    assert len(verify_fltr(fltr).harmful) == 5
    init_fltr(fltr)
    assert verify_fltr(fltr).conforms


def test_a_deleted_dataset_takes_its_documents_and_jobs_along(new_database: NewDatabase) -> None:
    fltr = new_database()
    init_fltr(fltr)
    execute(
        fltr,
        """
        WITH d AS (INSERT INTO datasets (user_id, name) VALUES ('u', 'n') RETURNING id),
             f AS (INSERT INTO documents (id, dataset_id, filename) SELECT 'x', id, 'a.pdf' FROM d RETURNING id)
        SELECT 1
        """,
    )
    execute(fltr, "INSERT INTO processing_jobs (document_id) VALUES ('x')")
    assert rows(fltr, "SELECT d.status, j.status FROM documents d, processing_jobs j") == [("uploaded", "queued")]
    execute(fltr, "DELETE FROM datasets")
    assert rows(fltr, "SELECT 1 FROM documents UNION ALL SELECT 1 FROM processing_jobs") == []


def test_several_processes_at_once_make_it_once(new_database: NewDatabase, postgres_server: str) -> None:
    # A role belongs to the server: with it gone, two databases race for its creation too.
    with contextlib.suppress(psycopg.errors.DependentObjectsStillExist):
        execute(postgres_server, f"DROP ROLE IF EXISTS {AUTH_ROLE}")
    fltr, auths = new_database(), (new_database(), new_database())
    with ThreadPoolExecutor(max_workers=6) as pool:
        list(pool.map(lambda i: init_databases(fltr, auths[i % 2]), range(6)))
    assert verify_fltr(fltr).conforms
    for auth in auths:
        assert verify_auth(auth).conforms
        assert len(rows(auth, "SELECT 1 FROM __drizzle_migrations")) == 3


def test_an_existing_fltr_auth_is_never_added_to(new_database: NewDatabase) -> None:
    auth = new_database()
    execute(auth, "CREATE TABLE users (id text PRIMARY KEY, credits integer)")
    before = rows(auth, TABLES)
    with pytest.raises(SchemaDrift, match="nothing is ever added"):
        init_auth_copy(auth)
    assert rows(auth, TABLES) == before


def test_tables_that_cant_be_built_upon_are_reported_and_nothing_is_half_made(new_database: NewDatabase) -> None:
    fltr = new_database()
    execute(fltr, "CREATE TABLE documents (id uuid PRIMARY KEY)")
    with pytest.raises(SchemaDrift, match="db verify"):
        init_fltr(fltr)
    assert rows(fltr, TABLES) == [("public.documents",)]


def test_a_role_without_the_right_to_create_is_told_so(new_database: NewDatabase) -> None:
    auth = new_database()
    init_auth_copy(auth)
    with pytest.raises(ConfigurationError, match="administrator"):
        init_fltr(as_role(auth, AUTH_ROLE))


def test_a_server_that_does_not_answer_is_a_transient_error_without_the_password() -> None:
    with pytest.raises(StoreUnavailable) as raised:
        init_fltr("postgresql://u:secret@127.0.0.1:1/d")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret@127.0.0.1:1/d?nonsense=%zz",
        "postgresql://u:secret%zz@127.0.0.1:1/d",
        "postgresql://u:p@secret@127.0.0.1:1/d",
        "postgresql://u:p@secret/x@127.0.0.1:1/d",
        "postgresql://u:p@secret:1@127.0.0.1/d",
        "postgresql://u:p@127.0.0.1:secret@127.0.0.1/d",
        "postgresql://u:secret/x@127.0.0.1:1/d",
    ],
)
def test_a_malformed_url_is_not_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError, match="%-encode") as raised:
        init_fltr(url)
    assert "secret" not in "".join(traceback.format_exception(raised.value, limit=0))


def test_an_at_sign_in_a_sockets_folder_is_no_passwords(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        init_fltr(f"postgresql://u@/d?host={tmp_path}/a@b")


def test_the_roles_password_is_set_only_when_given(new_database: NewDatabase) -> None:
    stored = f"SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = '{AUTH_ROLE}'"
    auth = new_database()
    init_auth_copy(auth, role_password="it's a %s secret")
    assert rows(auth, stored) == [(True,)]
    init_auth_copy(auth)
    assert rows(auth, stored) == [(True,)]
    execute(auth, f"ALTER ROLE {AUTH_ROLE} PASSWORD NULL")


class TestAddUser:
    def test_a_user_starts_with_a_balance_that_the_ledger_explains(self, new_database: NewDatabase) -> None:
        auth = new_database()
        init_auth_copy(auth)
        user = add_user(auth, "Ada@Example.org", "Ada", 500)
        assert rows(auth, "SELECT id, email, name FROM users") == [(user, "ada@example.org", "Ada")]
        assert rows(auth, "SELECT user_id, credits, total_credits_purchased FROM user_credits") == [(user, 500, 0)]
        assert rows(auth, "SELECT user_id, team_id, amount, type FROM credit_transactions") == [
            (user, None, 500, "bonus")
        ]

    def test_a_known_address_keeps_its_id_and_its_credits(self, new_database: NewDatabase) -> None:
        auth = new_database()
        init_auth_copy(auth)
        user = add_user(auth, "ada@example.org", "Ada", 5)
        assert add_user(auth, "ADA@example.org", "Other", 700) == user
        assert rows(auth, "SELECT credits FROM user_credits") == [(5,)]

    def test_many_at_once_make_one_user(self, new_database: NewDatabase) -> None:
        auth = new_database()
        init_auth_copy(auth)
        with ThreadPoolExecutor(max_workers=4) as pool:
            ids = set(pool.map(lambda _: add_user(auth, "ada@example.org", "Ada", 5), range(8)))
        assert len(ids) == 1
        assert rows(auth, "SELECT credits FROM user_credits") == [(5,)]
        assert rows(auth, "SELECT sum(amount) FROM credit_transactions") == [(5,)]

    def test_no_credits_make_no_ledger_row(self, new_database: NewDatabase) -> None:
        auth = new_database()
        init_auth_copy(auth)
        add_user(auth, "ada@example.org", "Ada", 0)
        assert rows(auth, "SELECT 1 FROM credit_transactions") == []

    def test_times_are_utc_whatever_the_servers_zone(self, new_database: NewDatabase) -> None:
        auth = new_database()
        init_auth_copy(auth)
        with psycopg.connect(auth, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f"ALTER DATABASE \"{name}\" SET timezone = 'Pacific/Kiritimati'".encode())
        add_user(auth, "ada@example.org", "Ada", 5)
        age = "now() AT TIME ZONE 'UTC' - created_at"
        for table in ("users", "user_credits", "credit_transactions"):
            assert rows(auth, f"SELECT {age} >= '0', {age} < '1 hour' FROM {table}") == [(True, True)]

    @pytest.mark.parametrize("amount", [-1, 2**31])
    def test_impossible_amounts_are_refused(self, amount: int) -> None:
        with pytest.raises(InvalidAmount):
            add_user("postgresql://unused", "ada@example.org", "Ada", amount)
