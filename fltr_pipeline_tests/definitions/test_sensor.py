"""The sensor `uploaded_documents` on a real instance and real databases."""

from datetime import timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from fltr_pipeline.defs import pauses
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.defs.sensors import uploaded_documents
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.resources import CreditsResource, FltrResource
from fltr_pipeline_tests.world import World


def tick(instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(instance=instance)
    result = uploaded_documents(context, fltr=FltrResource(), credits=CreditsResource())
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def launched(result: dg.SensorResult | dg.SkipReason) -> list[str]:
    assert isinstance(result, dg.SensorResult), result
    return [str(request.partition_key) for request in result.run_requests or []]


def in_flight(instance: dg.DagsterInstance, dataset_id: str, status: dg.DagsterRunStatus, job: str = "ingest") -> str:
    run = dg.DagsterRun(job_name=job, status=status, tags={"dagster/partition": dataset_id})
    return instance.add_run(run).run_id


def test_nothing_waits(world: World, instance: dg.DagsterInstance) -> None:
    world.dataset(world.user())
    assert isinstance(tick(instance), dg.SkipReason)


def test_it_reads_only(world: World, instance: dg.DagsterInstance) -> None:
    dataset = world.dataset(world.user())
    world.upload(dataset, {"a.txt": b"text"})
    for change, rows, engine in (
        (world.change, world.rows, world.services.fltr),
        (world.change_auth, world.auth_rows, world.services.ledger.engine),
    ):
        (name,) = rows("SELECT current_database()")[0]
        change(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        engine.dispose()
    assert launched(tick(instance)) == [dataset.id]
    assert instance.get_dynamic_partitions(str(DATASET_PARTITIONS.name)) == []
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        world.change("DELETE FROM documents")


def test_one_run_for_a_dataset_whatever_is_ticked_while_it_is_in_flight(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user())
    world.upload(dataset, {f"{n}.txt": b"text" for n in range(20)})
    result = tick(instance)
    assert launched(result) == [dataset.id]
    assert isinstance(result, dg.SensorResult)
    assert [request.tags["dataset"] for request in result.run_requests or []] == ["books"]
    run_id = in_flight(instance, dataset.id, dg.DagsterRunStatus.STARTED)
    assert isinstance(tick(instance), dg.SkipReason)
    # The run fails before it gets anywhere: no run key or cursor keeps its documents from being picked up again, but
    # a dataset that fails again and again leaves the slots to others in between.
    instance.report_run_failed(instance.get_run_by_id(run_id))  # type: ignore[arg-type]
    pausing = tick(instance)
    assert isinstance(pausing, dg.SkipReason)
    assert "the next is tried at" in str(pausing.skip_message)
    other = world.dataset(world.user())
    world.upload(other, {"a.txt": b"text"})
    assert launched(tick(instance)) == [other.id]
    monkeypatch.setattr(pauses, "FIRST", timedelta(0))
    assert sorted(launched(tick(instance))) == sorted([dataset.id, other.id])


def test_who_fails_again_and_again_pauses_longer_but_never_for_long(instance: dg.DagsterInstance) -> None:
    for failures in range(1, 7):
        for job, partition in (("ingest", "books"), ("reconcile", "")):
            tags = {"dagster/partition": partition} if partition else {}
            run = instance.add_run(dg.DagsterRun(job_name=job, status=dg.DagsterRunStatus.STARTED, tags=tags))
            instance.report_run_failed(run)
            failed = instance.get_run_records(dg.RunsFilter(run_ids=[run.run_id]))[0].update_timestamp
            minutes = min(2 ** (failures - 1), 5)
            assert pauses.paused(instance, job) == {partition: failed + timedelta(minutes=minutes)}
    assert pauses.paused(instance, "another") == {}


def test_drift_is_told_by_one_failed_run_and_then_by_the_ticks_until_it_is_gone(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "FIRST", timedelta(0))
    dataset, other = world.dataset(world.user()), world.dataset(world.user())
    world.upload(dataset, {"a.txt": b"text"})
    world.change("CREATE TABLE users (id text)")
    assert launched(tick(instance)) == [dataset.id]
    run_id = in_flight(instance, dataset.id, dg.DagsterRunStatus.STARTED)
    instance.report_run_failed(instance.get_run_by_id(run_id))  # type: ignore[arg-type]
    world.upload(other, {"b.txt": b"text"})
    for _ in range(2):
        skipped = tick(instance)
        assert isinstance(skipped, dg.SkipReason)
        for words in ("2 documents wait", "ingest is blocked", "users: expected no such table", "db verify"):
            assert words in str(skipped.skip_message)
    world.change("DROP TABLE users")
    assert sorted(launched(tick(instance))) == sorted([dataset.id, other.id])


def test_backfills_and_runs_by_hand_keep_no_upload_waiting(world: World, instance: dg.DagsterInstance) -> None:
    dataset = world.dataset(world.user())
    world.upload(dataset, {"a.txt": b"text"})
    for _ in range(5):
        in_flight(instance, dataset.id, dg.DagsterRunStatus.STARTED, job="reprocess_dataset")
    assert launched(tick(instance)) == [dataset.id]


def test_a_large_backlog_gets_more_runs_up_to_the_limit_and_others_come_first(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTR_RUN_DOCUMENTS", "10")
    monkeypatch.setenv("FLTR_MAX_CONCURRENT_RUNS", "3")
    big, small = world.dataset(world.user(), "big"), world.dataset(world.user(), "small")
    world.upload(big, {f"{n}.txt": b"text" for n in range(95)})
    world.upload(small, {"one.txt": b"text"})
    assert sorted(launched(tick(instance))) == sorted([big.id, big.id, small.id])
    in_flight(instance, big.id, dg.DagsterRunStatus.STARTED)
    in_flight(instance, big.id, dg.DagsterRunStatus.STARTED)
    assert launched(tick(instance)) == [small.id]


def test_documents_awaiting_credits_are_launched_once_the_pot_can_pay(
    world: World, instance: dg.DagsterInstance
) -> None:
    payer = world.user(credits=0)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": b"text"})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "awaiting_credits"}
    assert isinstance(tick(instance), dg.SkipReason)
    world.services.ledger.grant(payer, 5, reason="top-up")
    assert launched(tick(instance)) == [dataset.id]
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (2, 0, 3)


def test_a_database_that_does_not_answer_is_not_an_empty_one(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLTR_DATABASE_URL", f"postgresql://nobody@/fltr?host={tmp_path}")
    with pytest.raises(StoreUnavailable, match="did not complete a transaction"):
        tick(instance)
