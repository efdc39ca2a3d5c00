"""Engines, transactions, and how ids and rows travel as one parameter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from fltr_pipeline.errors import ConfigurationError, SchemaDrift, StoreUnavailable
from fltr_pipeline.stores.database import engine_for, id_array, recordset, transaction

STORABLE = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))


@pytest.fixture(scope="module")
def engine(postgres_server: str) -> Engine:
    return engine_for(SecretStr(postgres_server))


def test_a_process_has_one_engine_per_url(postgres_server: str, engine: Engine) -> None:
    assert engine_for(SecretStr(postgres_server)) is engine


def test_a_session_is_in_utc_and_read_committed(engine: Engine) -> None:
    with transaction(engine) as tx:
        query = "SELECT current_setting('timezone'), current_setting('transaction_isolation')"
        assert tx.execute(text(query)).one() == ("UTC", "read committed")


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
