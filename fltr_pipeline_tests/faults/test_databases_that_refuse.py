"""A database that answers and refuses: what all would meet is no document's fault, what one alone brings is its own."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline import expiry, sweeper
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.sweeper import NotAllEnded, Report
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline_tests.bills import Desk
from fltr_pipeline_tests.moments import Killed, dies
from fltr_pipeline_tests.world import BREAD, TREATY, World

_NOISE = random.Random(1)
LARGE = " ".join(f"{_NOISE.getrandbits(64):016x}" for _ in range(1_200)).encode()
_BY_CONTENT = "CREATE INDEX by_content ON documents (content)"
_NO_LONG_ONE = "ALTER TABLE documents ADD CONSTRAINT short CHECK (length(content) < 15000)"
_FROZEN = """
    CREATE FUNCTION frozen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it is archived'; END $$;
    CREATE TRIGGER frozen BEFORE UPDATE ON documents
    FOR EACH ROW WHEN (OLD.filename = 'large.txt') EXECUTE FUNCTION frozen()
"""


@pytest.fixture(autouse=True)
def _without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        EmbeddingModel, "encode", lambda self, texts: [[1.0] + [0.0] * (self.dimension - 1)] * len(texts)
    )


@contextmanager
def demoted(world: World, url: str) -> Iterator[None]:
    """As a primary after a failover: it lets in and reads, and takes no writes."""
    with psycopg.connect(url, autocommit=True) as admin:
        name = admin.info.dbname
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        world.close()  # the pooled connections: the failover has cut them
        yield
        admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())


@pytest.mark.parametrize("which", ["fltr", "fltr_auth"])
def test_a_database_that_takes_no_writes_costs_no_document_and_no_credit(world: World, which: str) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    world.upload(dataset, {"first.txt": TREATY})
    world.process(dataset)
    world.upload(dataset, {"a.txt": TREATY + b"!", "b.txt": BREAD})
    url = world.fltr_admin if which == "fltr" else world.auth_admin
    with demoted(world, url), pytest.raises(StoreUnavailable, match="read-only"):
        world.extract(dataset)
    assert "failed" not in world.statuses(dataset).values()
    assert {code for (code,) in world.rows("SELECT error_code FROM pipeline.documents")} <= {None, "transient"}

    world.change("UPDATE pipeline.documents SET retry_at = NULL")
    world.process(dataset)  # on new connections: those that met the refusal were left
    assert set(world.statuses(dataset).values()) == {"ready"}
    statement = world.statement(payer)
    assert (statement.charged, statement.held) == (6, 0)
    assert compare(world.services, dataset.id).none


def says_nothing_of_the_text(world: World) -> bool:
    """What is stored of the failure has neither a customer's text nor our SQL."""
    ((told,),) = world.rows("SELECT error_message FROM pipeline.documents WHERE error_message IS NOT NULL")
    return not any(part in told for part in (LARGE[:30].decode(), "DETAIL", "Failing row", "UPDATE"))


def test_a_text_that_a_constraint_of_the_application_refuses_is_nowhere_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = world.dataset(world.user(credits=50))
    world.change(_NO_LONG_ONE)
    world.upload(dataset, {"a.txt": TREATY, "large.txt": LARGE})
    *_, embedded = world.process(dataset)
    (failure,) = embedded.failures
    assert "violates check constraint" in failure.message
    assert says_nothing_of_the_text(world)
    assert "violates check constraint" in caplog.text
    assert LARGE[:30].decode() not in caplog.text + failure.message


def test_a_text_that_an_index_of_the_application_cannot_hold_fails_alone(world: World) -> None:
    payer = world.user(credits=50)
    dataset = world.dataset(payer)
    world.change(_BY_CONTENT)
    world.upload(dataset, {"a.txt": TREATY, "large.txt": LARGE, "b.txt": BREAD})
    *_, embedded = world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready", "large.txt": "failed", "b.txt": "ready"}
    (failure,) = embedded.failures
    assert failure.code == "internal_error"
    assert failure.message.startswith("large.txt: ")
    for said in ("index row requires", "can't hold a value of that size", "md5("):
        assert said in failure.message
    assert says_nothing_of_the_text(world)
    statement = world.statement(payer)
    assert (statement.charged, statement.held) == (4, 0), "what fails by our fault is given back"

    world.change("DROP INDEX by_content")
    world.process(dataset, ReprocessMode.failed)
    assert set(world.statuses(dataset).values()) == {"ready"}
    assert compare(world.services, dataset.id).none


def a_worker_dies_behind_the_decision(world: World, monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    world.upload(dataset, {"a.txt": TREATY, "large.txt": LARGE, "b.txt": BREAD})
    world.extract(dataset)
    world.stage(Plan(world.services), dataset)
    with monkeypatch.context() as patch:
        patch.setattr(Billing, "settle", dies)
        with pytest.raises(Killed):
            world.stage(Embed(world.services), dataset)


@pytest.mark.parametrize("refusing", [_BY_CONTENT, _NO_LONG_ONE])
def test_where_the_worker_died_behind_the_decision_a_sweep_fails_that_one_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    payer = world.user(credits=50)
    dataset = world.dataset(payer)
    world.change(refusing)
    a_worker_dies_behind_the_decision(world, monkeypatch, dataset)
    Desk(world, payer, dataset).an_hour_passes()
    swept = world.sweep_all(list_keys=False).swept
    assert (swept.documents, swept.published, swept.conflicts) == (3, 2, 0)
    assert world.statuses(dataset) == {"a.txt": "ready", "large.txt": "failed", "b.txt": "ready"}
    statement = world.statement(payer)
    assert (statement.charged, statement.held) == (4, 0)
    assert says_nothing_of_the_text(world)
    assert world.sweep_all(list_keys=False).nothing
    assert compare(world.services, dataset.id).none


def test_a_row_that_can_neither_be_published_nor_failed_keeps_a_pass_from_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    payer = world.user(credits=50)
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {"gone.txt": BREAD + b"!"})
    world.process(dataset)
    a_worker_dies_behind_the_decision(world, monkeypatch, dataset)
    world.change(_FROZEN)
    world.change("DELETE FROM documents WHERE id = %s", ids["gone.txt"])
    Desk(world, payer, dataset).an_hour_passes()
    total = Report()

    def a_full_pass() -> None:
        nonlocal total
        for ended in sweeper.sweep_all(world.services, world.billing, list_keys=True):
            total += ended

    with pytest.raises(NotAllEnded, match="refuses"):
        a_full_pass()
    assert (total.swept.published, total.swept.refused, len(total.receipts)) == (2, 1, 1)
    assert world.statuses(dataset) == {"a.txt": "ready", "large.txt": "processing", "b.txt": "ready"}
    assert "it is archived" in caplog.text
    assert world.sweep_all(list_keys=False).nothing, "until the sweep's own lease has run out"

    world.change("DROP TRIGGER frozen ON documents")
    Desk(world, payer, dataset).an_hour_passes()
    assert world.sweep_all(list_keys=False).swept.published == 1
    assert set(world.statuses(dataset).values()) == {"ready"}
    assert compare(world.services, dataset.id).none


def test_what_a_pass_is_refused_among_the_deleted_keeps_the_rest_from_nothing(world: World) -> None:
    frozen = world.dataset(leaving := world.user(credits=50))
    world.upload(frozen, {"large.txt": LARGE})
    world.extract(frozen)
    other = world.dataset(world.user(credits=50))
    world.change(_FROZEN)
    world.change("INSERT INTO pipeline.retired_keys VALUES ('old', %s, 'x')", other.id)
    world.change_auth("DELETE FROM users WHERE id = %s", leaving.user_id)
    with pytest.raises(NotAllEnded, match="refuses"):
        world.sweep_all()
    assert world.rows("SELECT key FROM pipeline.retired_keys") == []
    assert world.statuses(frozen) == {"large.txt": "processing"}

    world.change("DROP TRIGGER frozen ON documents")
    assert world.sweep_all().withdrawn.documents_ownerless == 1


@pytest.mark.parametrize("end", ["abandoned", "refunding"])
def test_an_account_that_is_frozen_keeps_nobody_elses_credits(
    world: World, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(expiry, "_BATCH", 1)
    desks = [Desk.of(world) for _ in range(2)]
    held = sorted((desk.hold(desk.claim("a")[0]).subject_id, desk.payer.user_id, desk) for desk in desks)
    (_, poor, _), (*_, free) = held
    world.change("DELETE FROM documents")
    world.change("DELETE FROM pipeline.documents")
    if end == "refunding":
        world.change("UPDATE pipeline.charges SET state = 'refunding', closed_at = now()")
    world.change_auth(f"""
        CREATE FUNCTION frozen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'frozen'; END $$;
        CREATE TRIGGER frozen BEFORE UPDATE ON user_credits
        FOR EACH ROW WHEN (OLD.user_id = '{poor}') EXECUTE FUNCTION frozen()
    """)
    swept = expiry.sweep(world.services, world.billing)
    assert (swept.charges, swept.refused, swept.credits_returned) == (1, 1, 3)
    assert [world.statement(desk.payer).held for *_, desk in held] == [3, 0]
    assert free.totals()[1] == 0

    world.change_auth("DROP TRIGGER frozen ON user_credits")
    assert expiry.sweep(world.services, world.billing).credits_returned == 3
    assert expiry.sweep(world.services, world.billing).nothing
