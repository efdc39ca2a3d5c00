"""Engines, transactions, and how ids and rows travel as one parameter."""

import hashlib
from collections.abc import Callable

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from fltr_pipeline.errors import ConfigurationError, InvalidValue, SchemaDrift, StoreUnavailable
from fltr_pipeline.stores.database import engine_for, id_array, recordset, transaction
from fltr_pipeline.stores.schema.connection import transaction as alone

OUTAGES = {
    "08006": "connection failure",
    "0A000": "cached plan must not change result type",
    "25006": "read-only transaction",
    "25P03": "idle-in-transaction timeout",
    "26000": "no such prepared statement",
    "28000": "not let in",
    "40P01": "deadlock",
    "53100": "disk full",
    "55P03": "lock not had",
    "57014": "statement timeout",
    "58030": "I/O error",
    "72000": "snapshot too old",
    "F0000": "configuration file",
    "HV000": "foreign server",
    "XX000": "tuple concurrently updated",
    "XX001": "damaged page",
    "ZZZZZ": "unheard of",
}
DRIFTS = {
    "3F000": "no schema", "42501": "not allowed", "42703": "no column", "42883": "no function", "42P01": "no table",
    "42P10": "no index for ON CONFLICT",
}  # fmt: skip
OF_A_ROW = {
    "21000": "two rows for one", "22003": "out of range", "23514": "a check", "44000": "a view's check",
    "P0001": "a trigger says no", "27000": "a trigger changed the row before", "38000": "a trigger's host failed",
    "39P01": "a trigger's answer is none",
}  # fmt: skip
STORABLE = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))


@pytest.fixture(scope="module")
def engine(postgres_server: str) -> Engine:
    return engine_for(SecretStr(postgres_server))


def test_a_process_has_one_engine_per_url(postgres_server: str, engine: Engine) -> None:
    assert engine_for(SecretStr(postgres_server)) is engine


def test_a_session_is_in_utc_and_read_committed(new_database: Callable[[], str]) -> None:
    """Whatever zone the database has."""
    url, query = new_database(), "SELECT current_setting('timezone'), current_setting('transaction_isolation')"
    with psycopg.connect(url) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET timezone = 'America/New_York'".encode())
    with transaction(engine_for(SecretStr(url))) as tx:
        assert tx.execute(text(query)).one() == ("UTC", "read committed")
    with alone(url) as session:
        assert session.execute(query.encode()).fetchone() == ("UTC", "read committed")


def test_a_host_that_vanishes_is_noticed_within_a_minute(engine: Engine) -> None:
    with transaction(engine) as tx:
        driver = tx.connection.driver_connection
        assert driver is not None
        told = {k: int(v) for k, v in driver.info.get_parameters().items() if k.startswith(("keepalives_", "tcp_"))}
    assert told["keepalives_idle"] + told["keepalives_interval"] * told["keepalives_count"] <= 60
    assert 0 < told["tcp_user_timeout"] <= 60_000


@pytest.mark.parametrize(
    "url",
    ["mysql://u:secret@h/d", "sqlite:///x", "secret", "postgresql://u:sec@ret@h/d", "postgresql://u:secret@h:x/d"],
)
def test_a_url_that_is_not_postgresqls_is_refused_without_a_word_of_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        engine_for(SecretStr(url))
    assert "secret" not in str(raised.value).replace("secret://", "")
    assert "ret@h" not in str(raised.value)


def test_a_transaction_is_committed_or_rolled_back_whole(engine: Engine) -> None:
    with transaction(engine) as tx:
        tx.execute(text("CREATE TABLE whole (n int PRIMARY KEY)"))

    def insert_twice() -> None:
        with transaction(engine) as tx:
            for _ in range(2):
                tx.execute(text("INSERT INTO whole VALUES (1)"))

    with pytest.raises(IntegrityError):
        insert_twice()
    with transaction(engine) as tx:
        assert tx.execute(text("SELECT count(*) FROM whole")).scalar() == 0
        tx.execute(text("DROP TABLE whole"))


@pytest.mark.parametrize("query", ["SELECT * FROM nowhere", "SELECT * FROM no.where", "SELECT none FROM pg_class"])
def test_what_is_not_there_is_a_drift_that_names_the_command(engine: Engine, query: str) -> None:
    with pytest.raises(SchemaDrift, match="db verify"), transaction(engine) as tx:
        tx.execute(text(query))


def refuse(engine: Engine, sqlstate: str) -> None:
    """PostgreSQL ends a transaction with this."""
    with transaction(engine) as tx:
        tx.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'it says no' USING ERRCODE = '{sqlstate}'; END $$"))


@pytest.mark.parametrize("sqlstate", OUTAGES)
def test_what_every_document_would_meet_is_an_outage(engine: Engine, sqlstate: str) -> None:
    with pytest.raises(StoreUnavailable, match="it says no"):
        refuse(engine, sqlstate)


@pytest.mark.parametrize("sqlstate", DRIFTS)
def test_what_is_not_as_specified_is_a_drift(engine: Engine, sqlstate: str) -> None:
    with pytest.raises(SchemaDrift, match="it says no"):
        refuse(engine, sqlstate)


@pytest.mark.parametrize("sqlstate", OF_A_ROW)
def test_what_one_row_can_cause_is_raised_as_it_is(engine: Engine, sqlstate: str) -> None:
    with pytest.raises(DBAPIError, match="it says no"):
        refuse(engine, sqlstate)


def test_a_value_that_an_index_cannot_hold_says_what_to_do(engine: Engine) -> None:
    def store(content: str) -> None:
        with transaction(engine) as tx:
            tx.execute(text("CREATE TEMP TABLE narrow (content text UNIQUE) ON COMMIT DROP"))
            tx.execute(text("INSERT INTO narrow VALUES (:content)"), {"content": content})

    store("short")
    digests = "".join(hashlib.md5(str(n).encode(), usedforsecurity=False).hexdigest() for n in range(500))
    with pytest.raises(InvalidValue, match=r"index row .* md5\(") as raised:
        store(digests)
    assert digests[:32] not in str(raised.value), "a customer's text"


def backends(engine: Engine) -> set[int]:
    """Of two connections at a time."""

    def backend(tx: Connection) -> int:
        return int(tx.execute(text("SELECT pg_backend_pid()")).scalar_one())

    with transaction(engine) as one, transaction(engine) as other:
        return {backend(one), backend(other)}


def test_a_server_that_takes_no_writes_any_more_is_unavailable_and_no_connection_to_it_is_used_again(
    engine: Engine,
) -> None:
    def write() -> None:
        with transaction(engine) as tx:
            tx.execute(text("SET TRANSACTION READ ONLY"))
            tx.execute(text("CREATE TABLE too_late (n int)"))

    before = backends(engine)
    with pytest.raises(StoreUnavailable, match="read-only"):
        write()
    assert before & backends(engine) == set()


def test_nothing_is_left_in_a_session_that_the_next_transaction_may_not_have(engine: Engine) -> None:
    """A pooler gives it another server's session."""
    with transaction(engine) as tx:
        for _ in range(20):
            tx.execute(text("SELECT 1"))
        assert tx.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar() == 0


def test_a_connection_has_no_parameter_that_a_pooler_refuses(engine: Engine, postgres_server: str) -> None:
    with transaction(engine) as tx, alone(postgres_server) as session:
        driver = tx.connection.driver_connection
        assert driver is not None
        assert "options" not in {**driver.info.get_parameters(), **session.info.get_parameters()}
        assert tx.execute(text("SHOW application_name")).scalar() == "fltr_pipeline"


def test_a_server_that_does_not_answer_is_unavailable_and_no_secret_is_told() -> None:
    nowhere = engine_for(SecretStr("postgresql://someone:hunter2@127.0.0.1:1/fltr"))
    with pytest.raises(StoreUnavailable, match="fltr") as raised, transaction(nowhere):
        pass
    assert "hunter2" not in str(raised.value)


def test_a_connection_that_is_cut_is_unavailable_and_the_next_transaction_is_well(engine: Engine) -> None:
    def lose_the_connection() -> None:
        with transaction(engine) as tx:
            own = tx.execute(text("SELECT pg_backend_pid()")).scalar()
            with transaction(engine) as killer:
                killer.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": own})
            tx.execute(text("SELECT 1"))

    with pytest.raises(StoreUnavailable):
        lose_the_connection()
    with transaction(engine) as tx:
        assert tx.execute(text("SELECT 1")).scalar() == 1


def test_a_lock_that_is_not_had_in_time_is_worth_a_retry(engine: Engine) -> None:
    def want_the_same() -> None:
        with transaction(engine) as tx, transaction(engine) as other:
            tx.execute(text("SELECT pg_advisory_xact_lock(1)"))
            other.execute(text("SET LOCAL lock_timeout = '10ms'"))
            other.execute(text("SELECT pg_advisory_xact_lock(1)"))

    with pytest.raises(StoreUnavailable, match="lock timeout"):
        want_the_same()


def test_an_error_does_not_carry_a_customers_text(engine: Engine) -> None:
    with pytest.raises(Exception, match="division by zero") as raised, transaction(engine) as tx:
        tx.execute(text("SELECT 1/0, CAST(:content AS text)"), {"content": "private words"})
    assert "private words" not in str(raised.value)


@given(ids=st.lists(STORABLE))
def test_an_array_of_ids_arrives_as_it_was(engine: Engine, ids: list[str]) -> None:
    with transaction(engine) as tx:
        assert tx.execute(text("SELECT CAST(:ids AS text[])"), {"ids": id_array(ids)}).scalar() == ids


def test_what_postgresql_cannot_store_is_left_out_of_a_recordset_and_nothing_else(engine: Engine) -> None:
    sent = recordset([{"a": "x\0\0y\ud800z", "b": "\\u0000 \\\\u0000 \\\0"}])
    query = text("SELECT a, b FROM json_to_recordset(:rows) AS r(a text, b text)")
    with transaction(engine) as tx:
        assert tuple(tx.execute(query, {"rows": sent}).one()) == ("xyz", "\\u0000 \\\\u0000 \\")


@given(rows=st.lists(st.tuples(STORABLE, st.integers(-(2**31), 2**31 - 1), st.none() | st.booleans())))
def test_a_recordset_arrives_as_it_was(engine: Engine, rows: list[tuple[str, int, bool | None]]) -> None:
    sent = recordset({"a": a, "b": b, "c": c} for a, b, c in rows)
    query = text("SELECT a, b, c FROM json_to_recordset(:rows) AS r(a text, b int, c bool)")
    with transaction(engine) as tx:
        assert [tuple(row) for row in tx.execute(query, {"rows": sent})] == rows
