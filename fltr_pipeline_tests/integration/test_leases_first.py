"""Leases and holds do not wait for what else a pass has to do, however much that is."""

import pytest

from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.models import Stage
from fltr_pipeline.pipeline import deletion, embed, sweeper
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, deleted, leases, manifest, requeue
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.moments import Killed, before, dies
from fltr_pipeline_tests.shelves import Shelves
from fltr_pipeline_tests.world import World

LEASED = "SELECT count(*) FROM pipeline.documents WHERE lease_until IS NOT NULL"


@pytest.fixture
def other(world: World, shelves: Shelves) -> Dataset:
    """Another owner's, with a document that nobody has claimed."""
    world.upload(shelves.other, {"new.txt": b"Another text."})
    return shelves.other


def die(world: World, dataset: Dataset) -> None:
    """A worker has the document in hand, and its lease runs out."""
    with transaction(world.services.fltr) as tx:
        claims.claim(tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id="dead", limit=9, lease_seconds=600)
        leases.expire_runs(tx, ["dead"])


@pytest.mark.parametrize("list_keys", [True, False])
def test_a_hold_is_closed_before_anything_is_withdrawn(
    world: World, shelves: Shelves, other: Dataset, monkeypatch: pytest.MonkeyPatch, *, list_keys: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fltr_pipeline.pipeline.extract.Extract.perform", dies)
        patch.setattr(claims, "retry_later", lambda *_: set())
        with pytest.raises(Killed):
            world.extract(other)
    world.change("UPDATE pipeline.documents SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL")
    assert world.statement(shelves.other_payer).held > 0
    world.change("DELETE FROM documents WHERE dataset_id = %s", shelves.books.id)
    held: list[int] = []
    before(monkeypatch, 1, deleted, "forget", lambda: held.append(world.statement(shelves.other_payer).held))
    assert world.sweep_all(list_keys=list_keys).withdrawn.documents_deleted == 2
    assert held == [0]


def test_in_a_ledger_that_is_another_deployments_nothing_is_closed(
    world: World, shelves: Shelves, other: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    die(world, other)
    monkeypatch.setattr(Ledger, "existing_users", lambda *_: set())
    with pytest.raises(ConfigurationError, match="nothing is swept"):
        world.sweep_all(list_keys=False)
    assert world.rows(LEASED) == [(1,)]


PARTS = {"documents": (deleted, "forget"), "owners": (deleted, "withdraw"), "keys": (manifest, "forget_retired"),
         "repairs": (requeue, "repair")}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_lease_that_runs_out_in_a_long_part_does_not_wait_for_its_end(
    world: World, shelves: Shelves, other: Dataset, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(sweeper, "_SHORT_PASS_SECONDS", -1.0)
    for module, name in ((deletion, "PAGE"), (deletion, "_BATCH"), (embed, "_SWEEP"), (sweeper, "_BATCH")):
        monkeypatch.setattr(module, name, 1)
    if part == "documents":
        world.change("DELETE FROM documents WHERE dataset_id = %s", shelves.books.id)
    elif part == "owners":
        world.change_auth("DELETE FROM users WHERE id = %s", shelves.books.user_id)
    elif part == "keys":
        world.change("INSERT INTO pipeline.retired_keys SELECT k, %s, 'x' FROM unnest('{a,b}'::text[]) k", other.id)
    else:
        world.change("UPDATE pipeline.chunks SET key = NULL, fresh = false")
    owner, name = PARTS[part]
    leased: list[object] = []
    before(monkeypatch, 1, owner, name, lambda: die(world, other))
    before(monkeypatch, 2, owner, name, lambda: leased.extend(world.rows(LEASED)))
    world.sweep_all(list_keys=False)
    assert leased == [(0,)]
