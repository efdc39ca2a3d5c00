"""The job `reconcile` and its probe, on a real instance and real databases."""

import dagster as dg

from fltr_pipeline.definitions import build_defs
from fltr_pipeline.defs.reconcile import overdue_work
from fltr_pipeline.models import Stage
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims
from fltr_pipeline_tests.world import World


def tick(instance: dg.DagsterInstance) -> dg.RunRequest | dg.SkipReason:
    result = overdue_work(
        dg.build_sensor_context(instance=instance), fltr=FltrResource(), credits=CreditsResource(),
        milvus=MilvusResource(), embedder=EmbedderResource(), blobs=BlobsResource(),
    )  # fmt: skip
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


def test_the_probe_launches_a_run_when_a_lease_ran_out_and_the_run_leaves_nothing(
    world: World, instance: dg.DagsterInstance
) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": b"Some text."})
    assert isinstance(tick(instance), dg.SkipReason)
    with transaction(world.services.fltr) as tx:
        claims.claim(tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id="dead", limit=9, lease_seconds=600)
    assert isinstance(tick(instance), dg.SkipReason)
    with transaction(world.services.fltr) as tx:
        claims.expire_runs(tx, ["dead"])
    assert isinstance(tick(instance), dg.RunRequest)

    at_it = instance.add_run(dg.DagsterRun(job_name="reconcile", status=dg.DagsterRunStatus.STARTED))
    assert isinstance(tick(instance), dg.SkipReason)
    instance.delete_run(at_it.run_id)

    result = build_defs().resolve_job_def("reconcile").execute_in_process(instance=instance)
    assert result.success
    (output,) = [e for e in result.all_events if e.event_type == dg.DagsterEventType.STEP_OUTPUT]
    assert output.step_output_data.metadata["documents"].value == 1
    assert isinstance(tick(instance), dg.SkipReason)
    assert world.rows("SELECT status FROM processing_jobs") == [("failed",)]
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}


def test_a_database_that_does_not_answer_is_tried_again(world: World, instance: dg.DagsterInstance) -> None:
    world.change("ALTER SCHEMA pipeline RENAME TO elsewhere")
    result = build_defs().resolve_job_def("reconcile").execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert "db verify" in str(failure.step_failure_data.error)
