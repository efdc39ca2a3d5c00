"""`fltr-pipeline reconcile`: what it says, and that the second time it has nothing to say."""

import json
from datetime import UTC

import pytest

from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import Stage
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, leases
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.bills import Desk
from fltr_pipeline_tests.command_line import fltr_pipeline
from fltr_pipeline_tests.world import World


def test_what_a_dead_worker_left_is_ended_and_told(world: World) -> None:
    dataset = world.dataset(world.user())
    world.upload(dataset, {"a.txt": b"Some text.", "b.txt": b"Other text."})
    with transaction(world.services.fltr) as tx:
        claims.claim(tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id="dead", limit=9, lease_seconds=600)
        leases.expire_runs(tx, ["dead"])
    assert "2 documents taken from dead workers" in fltr_pipeline("reconcile").stdout
    assert "nothing to do" in fltr_pipeline("reconcile").stdout
    assert fltr_pipeline("reconcile", "--json").document == {
        "documents": 0, "published": 0, "charges": 0, "holds": 0, "credits_returned": 0, "conflicts": 0, "refused": 0,
        "documents_deleted": 0, "datasets_deleted": 0, "documents_ownerless": 0, "documents_restored": 0,
        "documents_moved": 0, "files_not_copied": 0,
        "vectors_retired": 0, "vectors_orphaned": 0, "vectors_missing": 0, "documents_repaired": 0, "receipts": [],
    }  # fmt: skip


def test_a_charge_whose_row_in_the_ledger_was_changed_is_told(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.hold(claim)
    world.change_auth("UPDATE credit_transactions SET amount = -2 WHERE resource_id = %s", claim.document_id)
    desk.an_hour_passes()
    assert "1 row of the ledger changed by hand" in fltr_pipeline("reconcile").stdout
    assert "nothing to do" in fltr_pipeline("reconcile").stdout


@pytest.mark.parametrize("how", ["", "--json"])
def test_what_was_done_before_a_store_failed_is_told(world: World, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    dataset = world.dataset(world.user(credits=20))
    world.upload(dataset, {"a.txt": b"Some text."})
    world.process(dataset)
    world.change("DELETE FROM documents")

    def down(*_: object) -> None:
        raise StoreUnavailable("Milvus does not answer")

    monkeypatch.setattr(VectorStore, "delete_listed", down)
    outcome = fltr_pipeline("reconcile", *filter(None, [how]))
    assert outcome.exit_code == 1
    assert "Milvus does not answer" in outcome.words
    if how:
        assert json.loads(outcome.stdout)["documents_deleted"] == 1
    else:
        assert "1 document deleted: taken out of work" in outcome.stdout


def test_what_is_gone_from_milvus_is_told_with_its_receipt(world: World) -> None:
    dataset = world.dataset(world.user(credits=20))
    ids = world.upload(dataset, {"a.txt": b"Some text.", "b.txt": b"Other text."})
    world.process(dataset)
    world.sweep_all()  # what other tests left in Milvus
    world.change("DELETE FROM documents WHERE id = %s", ids["a.txt"])
    told = fltr_pipeline("reconcile").words
    assert "1 document deleted: taken out of work and of the manifest" in told
    assert "1 vector deleted from Milvus that nothing holds any more" in told
    assert f"document {ids['a.txt']} is gone: 1 vector verified absent from dataset {dataset.id} at 20" in told
    world.change("DELETE FROM datasets")
    document = fltr_pipeline("reconcile", "--json").document
    assert (document["documents_deleted"], document["datasets_deleted"]) == (1, 1)
    ((at,),) = world.rows("SELECT verified_at FROM pipeline.deletions WHERE cause = 'dataset'")
    assert document["receipts"] == [
        {
            "document_id": ids["b.txt"], "dataset_id": dataset.id, "cause": "dataset", "vectors": 1,
            "verified_at": at.astimezone(UTC).isoformat(),
        }
    ]  # fmt: skip
