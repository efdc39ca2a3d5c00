"""The two checks of the schemas, as operators meet them: what blocks ingest, what doesn't, and when they run."""

import dagster as dg
import pytest

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.definitions import build_defs
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.defs.schedules import daily_verification
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.money import available
from fltr_pipeline_tests.world import World

CHECKS = {"fltr_matches_specification", "fltr_auth_matches_specification"}

WORK = {"datasets", "documents", "processing_jobs", "document_embeddings"}

HARMFUL = [
    ("fltr", "CREATE TABLE users (id text)", "users: expected no such table"),
    ("fltr_auth", "ALTER TABLE users ADD COLUMN credits integer", "users.credits: expected no credit columns"),
    (
        "fltr_auth",
        "ALTER TABLE credit_transactions DROP CONSTRAINT credit_transactions_user_id_users_id_fk,"
        "ADD FOREIGN KEY (user_id) REFERENCES user_credits (user_id) ON DELETE CASCADE",
        "found → user_credits.user_id ON DELETE CASCADE",
    ),
    (
        "fltr_auth",
        "ALTER TABLE sessions DROP CONSTRAINT sessions_user_id_users_id_fk,"
        "ADD FOREIGN KEY (user_id) REFERENCES users (id)",
        "ON DELETE CASCADE",
    ),
]
HARMLESS = [
    ("fltr", "ALTER TABLE documents ALTER COLUMN filename TYPE varchar(1000)"),
    ("fltr", "CREATE INDEX of_theirs ON documents (filename)"),
    ("fltr_auth", "ALTER TABLE users ADD COLUMN two_factor_enabled boolean"),
    ("fltr_auth", "ALTER TABLE credit_transactions ALTER COLUMN created_at TYPE timestamptz"),
]


def change(world: World, database: str, statement: str) -> None:
    (world.change if database == "fltr" else world.change_auth)(statement)


def ingest(
    instance: dg.DagsterInstance, dataset: Dataset, *assets: str, job: str = "ingest"
) -> dg.ExecuteInProcessResult:
    """The whole job, or these assets of it alone."""
    instance.add_dynamic_partitions(str(DATASET_PARTITIONS.name), [dataset.id])
    return (
        build_defs()
        .resolve_job_def(job)
        .execute_in_process(
            instance=instance,
            partition_key=dataset.id,
            asset_selection=[dg.AssetKey(name) for name in assets] or None,
            raise_on_error=False,
        )
    )


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set-up that costs something."""
    monkeypatch.setenv("FLTR_PRICES__DATASET_SETUP", "3")


@pytest.mark.parametrize(("database", "statement", "words"), HARMFUL, ids=lambda v: v.split(" (")[0][:40])
def test_harmful_drift_blocks_ingest_with_a_message_that_says_so(
    world: World, instance: dg.DagsterInstance, priced: None, database: str, statement: str, words: str
) -> None:
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": b"Alpha and omega."})
    change(world, database, statement)
    result = ingest(instance, dataset)
    assert not result.success
    assert not {e.step_key for e in result.get_step_success_events()} & WORK
    (failed,) = [c for c in result.get_asset_check_evaluations() if not c.passed]
    assert failed.check_name == f"{database}_matches_specification"
    assert failed.blocking
    assert failed.description is not None
    assert failed.description.startswith(f"ingest is blocked: database {database} is not as specified")
    assert words in failed.description
    assert "fltr-pipeline db verify" in failed.description
    assert world.statuses(dataset) == {"a.txt": "uploaded"}
    assert untouched(world, payer), "nor was the set-up charged"


def untouched(world: World, payer: Payer) -> bool:
    """Whether no op has moved a credit of theirs, or noted that it will."""
    (charges,) = world.rows("SELECT count(*) FROM pipeline.charges")
    return charges == (0,) and available(world, payer) == 10


@pytest.mark.parametrize("asset", sorted(WORK))
def test_harmful_drift_blocks_an_asset_that_is_materialised_alone(
    world: World, instance: dg.DagsterInstance, priced: None, asset: str
) -> None:
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": b"Alpha and omega."})
    world.change("CREATE TABLE users (id text)")
    result = ingest(instance, dataset, asset)
    assert not result.success
    description = str(result.failure_data_for_node(asset))
    assert "ingest is blocked: database fltr is not as specified" in description
    assert "users: expected no such table" in description
    assert result.retry_attempts_for_node(asset) == 0
    assert world.statuses(dataset) == {"a.txt": "uploaded"}
    assert untouched(world, payer)


def test_harmful_drift_blocks_a_reprocessing_too(world: World, instance: dg.DagsterInstance, priced: None) -> None:
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.change("CREATE TABLE users (id text)")
    result = ingest(instance, dataset, job="reprocess_dataset")
    assert not {e.step_key for e in result.get_step_success_events()} & WORK
    assert [c.check_name for c in result.get_asset_check_evaluations() if not c.passed] == [
        "fltr_matches_specification"
    ]
    assert untouched(world, payer)


def test_harmless_differences_are_listed_and_block_nothing(world: World, instance: dg.DagsterInstance) -> None:
    dataset = world.dataset(world.user(credits=10))
    world.upload(dataset, {"a.txt": b"Alpha and omega."})
    for database, statement in HARMLESS:
        change(world, database, statement)
    result = ingest(instance, dataset)
    assert result.success
    checks = {c.check_name: c for c in result.get_asset_check_evaluations()}
    for name in CHECKS:
        assert checks[name].passed
        assert checks[name].metadata["harmless"].value == 2
        assert "harmless" in str(checks[name].metadata["differences"].value)
    assert world.statuses(dataset) == {"a.txt": "ready"}


def test_both_are_checked_daily(world: World, instance: dg.DagsterInstance) -> None:
    assert daily_verification.default_status is dg.DefaultScheduleStatus.RUNNING
    minute, hour, *every = str(daily_verification.cron_schedule).split()
    assert minute.isdigit()
    assert hour.isdigit()
    assert every == ["*", "*", "*"]
    result = build_defs().resolve_job_def(daily_verification.job_name).execute_in_process(instance=instance)
    assert {c.check_name for c in result.get_asset_check_evaluations() if c.passed} >= CHECKS
