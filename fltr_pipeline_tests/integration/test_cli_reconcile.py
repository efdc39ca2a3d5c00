"""`fltr-pipeline reconcile`: what it says, and that the second time it has nothing to say."""

from fltr_pipeline.models import Stage
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims
from fltr_pipeline_tests.command_line import fltr_pipeline
from fltr_pipeline_tests.world import World


def test_what_a_dead_worker_left_is_ended_and_told(world: World) -> None:
    dataset = world.dataset(world.user())
    world.upload(dataset, {"a.txt": b"Some text.", "b.txt": b"Other text."})
    with transaction(world.services.fltr) as tx:
        claims.claim(tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id="dead", limit=9, lease_seconds=600)
        claims.expire_runs(tx, ["dead"])
    assert "2 documents taken from dead workers" in fltr_pipeline("reconcile").stdout
    assert "nothing to do" in fltr_pipeline("reconcile").stdout
    assert fltr_pipeline("reconcile", "--json").document == {
        "documents": 0, "published": 0, "charges": 0, "holds": 0, "credits_returned": 0,
        "documents_deleted": 0, "datasets_deleted": 0, "documents_ownerless": 0, "documents_restored": 0,
        "vectors_retired": 0, "vectors_orphaned": 0, "vectors_missing": 0, "documents_repaired": 0, "receipts": [],
    }  # fmt: skip
