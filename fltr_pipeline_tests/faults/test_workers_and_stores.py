"""Workers that die or come back late, and stores that don't answer: nothing is lost, nothing is charged twice."""

import dataclasses
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection

from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import ReprocessMode, Stage, VectorRow
from fltr_pipeline.pipeline import embed
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.stores.blobs import BlobStore
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, generations, leases
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.fltr.generations import FreshChunk
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.milvus_lite import free_port
from fltr_pipeline_tests.world import World

TREATY = b"The treaty of Westphalia ended the thirty years war in 1648."
BREAD = b"# Bread\n\nFlour, water, salt and yeast; knead, let it rise, bake at 220 degrees for forty minutes.\n"


def test_a_worker_that_lost_its_lease_changes_nothing(world: World) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    slow = world.worker()
    with transaction(world.services.fltr) as tx:
        (claim,) = claims.claim(
            tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id=slow.run_id, limit=5, lease_seconds=60
        )
        assert not claims.claim(
            tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id="other", limit=5, lease_seconds=60
        )
    with transaction(world.services.fltr) as tx:
        assert leases.expire_runs(tx, [slow.run_id]) == [claim.document_id]
    world.process(dataset)
    with transaction(world.services.fltr) as tx:
        assert claims.advance(tx, [claim], Stage.PLAN) == set()
        assert claims.fail(tx, [claims.Failure(claim, "corrupt", "late")]) == set()
        assert claims.retry_later(tx, [claim], "late") == set()
        assert claims.wait_for_credits(tx, [claims.Wait(claim, 1, "user", payer.user_id)]) == set()
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert sorted(world.rows("SELECT status FROM processing_jobs")) == [("completed",), ("failed",)]


def test_a_document_that_kills_its_workers_is_given_up(world: World) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    for _ in range(world.services.settings.max_attempts + 1):
        with transaction(world.services.fltr) as tx:
            assert claims.claim(tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id="w", limit=5, lease_seconds=60)
            leases.expire_runs(tx, ["w"])
        world.change("UPDATE pipeline.documents SET retry_at = NULL")  # the wait after each death is over
    _, extracted, *_ = world.process(dataset)
    assert [f.code for f in extracted.failures] == ["gave_up"]
    assert world.statement(payer).available == 20
    world.process(dataset, ReprocessMode.failed)
    assert world.statuses(dataset) == {"a.txt": "ready"}


@pytest.mark.parametrize("stage", ["extract", "extract, by a driver that connects when it is made", "embed"])
def test_a_store_that_does_not_answer_costs_no_document_and_no_credit(
    world: World, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY, "b.md": BREAD})
    healthy = world.services
    if stage == "embed":
        dead = VectorStore(f"http://127.0.0.1:{free_port()}", None, collection="gone", dimension=384, timeout=2)
        world.extract(dataset)
        world.stage(Plan(world.services), dataset)
        world.services = dataclasses.replace(healthy, vectors=dead)
        with pytest.raises(StoreUnavailable):
            world.stage(Embed(world.services), dataset)
    elif "driver" in stage:
        world.services = dataclasses.replace(healthy, blobs=BlobStore(f"ftp://ann:hunter2@127.0.0.1:{free_port()}/x"))
        with pytest.raises(StoreUnavailable):
            world.extract(dataset)
        told = world.rows("SELECT error_code, error_message FROM pipeline.documents")
        assert {code for code, _ in told} == {"transient"}
        assert "hunter2" not in str(told)
    else:
        folder = world.blobs
        folder.rename(folder.with_name("unmounted"))
        with pytest.raises(StoreUnavailable):
            world.extract(dataset)
        folder.with_name("unmounted").rename(folder)
    assert set(world.statuses(dataset).values()) == {"processing"}
    assert dict(world.rows("SELECT retries, count(*) FROM pipeline.documents WHERE retry_at > now() GROUP BY 1")) == {
        1: 2
    }

    world.services = healthy
    world.change("UPDATE pipeline.documents SET retry_at = NULL")
    world.process(dataset)

    assert set(world.statuses(dataset).values()) == {"ready"}
    statement = world.statement(payer)
    assert (statement.charged, statement.held) == (4, 0)
    assert compare(world.services, dataset.id).none


def test_a_crash_between_reserve_and_settle_is_charged_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})

    class Killed(BaseException):
        pass

    for broken in (Extract, Plan, Embed):
        for step in ("perform", "finish"):
            with monkeypatch.context() as patch:

                def crash(*_: object) -> None:
                    raise Killed

                patch.setattr(broken, step, crash)
                patch.setattr(claims, "retry_later", lambda *_: set())  # the dead put nothing back
                with pytest.raises(Killed):
                    world.process(dataset)
            world.change(
                "UPDATE pipeline.documents SET lease_until = now() - interval '1 s', attempts = 0, retry_at = NULL"
                " WHERE lease_until IS NOT NULL"
            )
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (2, 0, 18)
    assert compare(world.services, dataset.id).none


def test_a_document_taken_over_while_it_is_embedded_does_not_hold_up_its_group(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user(credits=20))
    world.upload(dataset, {"a.txt": TREATY, "b.md": BREAD})
    world.extract(dataset)
    world.stage(Plan(world.services), dataset)
    assign = generations.assign_keys

    def and_a_newer_input_is_claimed(tx: Connection, claimed: Sequence[Claim], lost: set[str]) -> list[FreshChunk]:
        fresh = assign(tx, claimed, lost)
        tx.commit()
        monkeypatch.setattr(generations, "assign_keys", assign)
        world.upload(dataset, {"a.txt": BREAD})
        with transaction(world.services.fltr) as other:
            (claim,) = claims.claim(
                other, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id="other", limit=5, lease_seconds=60
            )
            generations.discard_others(other, [claim.document_id])
        return fresh

    monkeypatch.setattr(generations, "assign_keys", and_a_newer_input_is_claimed)
    report = world.stage(Embed(world.services), dataset)
    assert (report.done, report.lost) == (1, 1)
    assert world.statuses(dataset) == {"a.txt": "processing", "b.md": "ready"}
    with transaction(world.services.fltr) as tx:
        leases.expire_runs(tx, ["other"])
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready", "b.md": "ready"}
    assert compare(world.services, dataset.id).none


def planned(world: World, data: bytes) -> Dataset:
    """A document that waits to be embedded."""
    dataset = world.dataset(world.user(credits=20))
    world.upload(dataset, {"a.txt": data})
    world.extract(dataset)
    world.stage(Plan(world.services), dataset)
    return dataset


def test_a_worker_names_what_it_inserted_too_late_also_where_it_gets_no_further(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor has named the keys, and a sweep forgotten them, before they were there."""
    monkeypatch.setattr(embed, "_FIRST_SLICE", 1)
    monkeypatch.setattr(embed, "_SLICE", 1)
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "20")
    dataset, insert = planned(world, TREATY * 9), VectorStore.insert

    def late(store: VectorStore, rows: Sequence[VectorRow]) -> None:
        monkeypatch.setattr(VectorStore, "insert", insert)
        world.change("UPDATE pipeline.documents SET lease_until = now() - interval '1 s'")
        assert [r.done for r in world.process(dataset)[1:]] == [0, 0, 1]
        insert(store, rows)
        raise StoreUnavailable("Milvus does not answer")

    monkeypatch.setattr(VectorStore, "insert", late)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        world.stage(Embed(world.services), dataset)
    assert len(compare(world.services, dataset.id).orphans) == 0
    sweep(world.services, dataset.id)
    assert world.keys(dataset) == {key for (key,) in world.rows("SELECT key FROM pipeline.chunks")}


def test_a_receipt_is_taken_back_until_what_came_after_it_is_swept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, insert = planned(world, TREATY), VectorStore.insert

    def late(store: VectorStore, rows: Sequence[VectorRow]) -> None:
        monkeypatch.setattr(VectorStore, "insert", insert)
        world.change("UPDATE pipeline.documents SET lease_until = now() - interval '1 s'")
        world.change("DELETE FROM documents")
        assert len(world.sweep_all(list_keys=False).receipts) == 1
        insert(store, rows)

    monkeypatch.setattr(VectorStore, "insert", late)
    world.stage(Embed(world.services), dataset)
    assert len(world.keys(dataset)) == 1
    assert world.rows("SELECT verified_at FROM pipeline.deletions") == [(None,)]
    assert len(world.sweep_all(list_keys=False).receipts) == 1
    assert world.keys(dataset) == set()


def test_what_was_decided_is_settled_and_published_without_being_embedded_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    world.extract(dataset)
    world.stage(Plan(world.services), dataset)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Billing, "settle", killed)
        patch.setattr(claims, "retry_later", lambda *_: set())
        with pytest.raises(Killed):
            world.stage(Embed(world.services), dataset)
    world.change("UPDATE pipeline.documents SET lease_until = now() - interval '1 s'")
    keys = set(world.services.vectors.keys(dataset.id))
    report = world.stage(Embed(world.services), dataset)
    assert (report.done, report.credits_charged, report.counts["chunks_embedded"]) == (1, 1, 0)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert set(world.services.vectors.keys(dataset.id)) == keys
    assert world.rows("SELECT count(*) FROM pipeline.retired_keys") == [(0,)]
    assert compare(world.services, dataset.id).none
