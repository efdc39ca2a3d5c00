"""The manifest and Milvus, key by key: what only one of them has is found, told, repaired once, and never in flight."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import ReprocessMode, Stage, VectorRow
from fltr_pipeline.pipeline import reconcile, sweeper
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import Drift, compare, compare_all
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.sweeper import Report, Vectors
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, leases, manifest
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.fltr.plans import PlannedChunk
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.vectors import ON_EACH_MILVUS
from fltr_pipeline_tests.world import World

TREATY = b"The treaty of Westphalia ended the thirty years war in 1648."
BREAD = b"Flour, water, salt and yeast; knead, let it rise, bake at 220 degrees."
NOTHING = Report()


def long_text(paragraphs: int) -> bytes:
    """A chunk or so for each paragraph, each unlike the others."""
    return "\n\n".join(
        " ".join(f"{n} river stone {n * 31 + i}" for i in range(40)) + "." for n in range(paragraphs)
    ).encode()


EDITED = long_text(12) + b"\n\nOne more paragraph, all new."


@pytest.fixture
def books(world: World) -> Dataset:
    """A short document and one of several chunks, searchable; alone in Milvus."""
    dataset = world.dataset(world.user())
    world.upload(dataset, {"bread.txt": BREAD, "long.txt": long_text(12)})
    world.process(dataset)
    world.sweep_all()  # what other tests left in Milvus
    return dataset


def found(world: World, dataset: Dataset, query: str = "bread") -> set[str]:
    return {h.place.filename for h in search(world.services, dataset.id, query, k=50)}


def keys_of(world: World, filename: str) -> list[str]:
    rows = world.rows(
        "SELECT c.key FROM pipeline.chunks c JOIN documents d ON d.id = c.document_id"
        " JOIN pipeline.documents p ON p.document_id = d.id AND p.live_generation = c.generation"
        " WHERE d.filename = %s ORDER BY c.ordinal",
        filename,
    )
    return [key for (key,) in rows]


def lose(world: World, keys: Sequence[str]) -> None:
    world.services.vectors.delete(keys)


def strangers(world: World, dataset_id: str, keys: Iterable[str]) -> None:
    """Vectors that no worker of ours put there."""
    vector = world.services.model.encode(["flour and water"])[0]
    world.services.vectors.insert([VectorRow(key, dataset_id, "nobody", "flour and water", vector) for key in keys])


def plan_the_edit(world: World, books: Dataset) -> None:
    world.upload(books, {"long.txt": EDITED})
    world.extract(books)
    world.stage(Plan(world.services), books)


def settles(world: World) -> None:
    world.sweep_all()
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


def paid(world: World, dataset: Dataset) -> int:
    payer = world.services.ledger.payer(dataset.user_id)
    assert payer is not None
    return world.statement(payer).charged


# --- in Milvus alone --------------------------------------------------------------------------------------------------


@ON_EACH_MILVUS
def test_orphans_are_told_and_then_deleted_wherever_they_lie(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "KEYS_PER_PAGE", 5)
    monkeypatch.setattr("fltr_pipeline.stores.vectors.store.PAGE_ROWS", 3)
    live = world.keys(books)
    strangers(world, books.id, [f"stray-{n}" for n in range(7)])
    strangers(world, "no-such-dataset", [f"lost-{n}" for n in range(4)])
    drifts = compare_all(world.services)
    assert drifts[books.id] == compare(world.services, books.id)
    assert drifts == {
        books.id: Drift(len(live), frozenset(), frozenset(f"stray-{n}" for n in range(7))),
        "no-such-dataset": Drift(0, frozenset(), frozenset(f"lost-{n}" for n in range(4))),
    }
    assert found(world, books, "flour and water") == {"bread.txt", "long.txt"}, "search looks in the manifest"
    assert world.sweep_all() == Report(vectors=Vectors(vectors_orphaned=11))
    assert dict(world.services.vectors.every_key()) == dict.fromkeys(live, books.id)
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


@ON_EACH_MILVUS
def test_orphans_that_another_program_named_as_it_liked_are_told_and_deleted(
    world: World, books: Dataset, milvus: Any
) -> None:
    vectors, keys = world.services.vectors, ["doc/1#3", 'say "x"', "back\\slash", "語", "nul\0"]
    vector = [1.0] + [0.0] * (vectors.dimension - 1)
    rows = [{"key": key, "dataset_id": "a/b", "document_id": "x", "text": "words", "vector": vector} for key in keys]
    milvus.insert(vectors.collection, rows)
    lose(world, keys_of(world, "bread.txt"))
    assert compare_all(world.services)["a/b"].orphans == set(keys)
    assert world.sweep_all().vectors == Vectors(
        vectors_orphaned=len(keys), vectors_missing=1, documents_repaired=1, vectors_retired=1
    )
    world.process(books)
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


def test_a_short_pass_lists_no_keys(world: World, books: Dataset) -> None:
    strangers(world, books.id, ["stray"])
    assert world.sweep_all(list_keys=False) == NOTHING
    assert "stray" in world.keys(books)
    world.sweep_all()


@ON_EACH_MILVUS
def test_vectors_of_an_attempt_in_flight_are_no_orphans(world: World, books: Dataset) -> None:
    """A full pass right before the insert, right behind it, and with the worker dead."""
    world.upload(books, {"new.txt": TREATY})
    world.extract(books)
    world.stage(Plan(world.services), books)
    with transaction(world.services.fltr) as tx:
        (claim,) = claims.claim(tx, dataset_id=books.id, stage=Stage.EMBED, run_id="slow", limit=1, lease_seconds=600)
    insert, passes = VectorStore.insert, []

    def beside_a_pass(self: VectorStore, rows: Sequence[VectorRow]) -> None:
        passes.append(world.sweep_all())
        insert(self, rows)
        passes.append(world.sweep_all())

    before, work = len(world.keys(books)), Embed(world.services)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VectorStore, "insert", beside_a_pass)
        (result,) = work.perform([claim], {})
    assert passes == [NOTHING, NOTHING]
    assert (len(world.keys(books)), compare_all(world.services)) == (before + 1, {})
    with transaction(world.services.fltr) as tx:
        leases.expire_runs(tx, ["slow"])
    assert world.sweep_all().swept.published == 1
    assert work.finish([result]) == set()
    assert found(world, books) == {"bread.txt", "long.txt", "new.txt"}
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


class Died(BaseException):
    """The worker dies here."""


@ON_EACH_MILVUS
@pytest.mark.parametrize("dies", [True, False])
def test_vectors_that_a_worker_inserts_after_it_lost_its_document_go_with_the_next_pass(
    world: World, books: Dataset, *, dies: bool
) -> None:
    """If it dies of it, they are in Milvus alone, and the next listing finds them; else it names them itself."""
    world.upload(books, {"new.txt": TREATY})
    world.extract(books)
    world.stage(Plan(world.services), books)
    insert = VectorStore.insert

    def slept(self: VectorStore, rows: Sequence[VectorRow]) -> None:
        world.change("UPDATE pipeline.documents SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL")
        patch.undo()
        assert world.sweep_all(list_keys=False).swept.documents == 1
        world.process(books)
        insert(self, rows)
        if dies:
            raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VectorStore, "insert", slept)
        with pytest.raises(Died) if dies else nullcontext():
            assert world.stage(Embed(world.services), books).done == 0
    assert len(compare(world.services, books.id).orphans) == dies
    assert world.sweep_all().vectors == Vectors(vectors_orphaned=int(dies), vectors_retired=int(not dies))
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


def test_keys_that_no_run_swept_are_swept_by_a_pass(world: World, books: Dataset) -> None:
    (bread,) = keys_of(world, "bread.txt")
    world.change("INSERT INTO pipeline.retired_keys SELECT 'old', dataset_id, 'x' FROM pipeline.datasets")
    strangers(world, books.id, ["old"])
    assert found(world, books, "flour and water") == {"bread.txt", "long.txt"}
    assert compare(world.services, books.id).none, "it waits for the sweep"
    assert world.sweep_all(list_keys=False) == Report(vectors=Vectors(vectors_retired=1))
    assert bread in world.keys(books)
    assert world.sweep_all() == NOTHING


# --- in the manifest alone --------------------------------------------------------------------------------------------


@ON_EACH_MILVUS
@pytest.mark.parametrize("file", ["kept", "deleted"])
def test_lost_vectors_are_made_anew_free_of_charge_while_the_rest_stays_searchable(
    world: World, books: Dataset, file: str
) -> None:
    chunks, charged = keys_of(world, "long.txt"), paid(world, books)
    content = world.rows("SELECT content FROM documents WHERE filename = 'long.txt'")
    lost = chunks[1:3]
    lose(world, lost)
    assert compare_all(world.services) == {books.id: Drift(len(chunks) + 1, frozenset(lost), frozenset())}

    assert world.sweep_all() == Report(vectors=Vectors(vectors_missing=2, documents_repaired=1, vectors_retired=2))
    assert compare_all(world.services) == {books.id: Drift(len(chunks) - 1, frozenset(), frozenset(), lost=2)}
    assert world.sweep_all() == NOTHING, "it is on its way"
    assert world.statuses(books) == {"bread.txt": "ready", "long.txt": "ready"}
    assert found(world, books) == {"bread.txt", "long.txt"}

    if file == "deleted":
        for path in world.blobs.rglob("long.txt"):
            path.unlink()
    *_, planned, embedded = world.process(books)
    assert (planned.done, embedded.done, embedded.counts["chunks_embedded"]) == (1, 1, 2)
    after = keys_of(world, "long.txt")
    assert [new == old for new, old in zip(after, chunks, strict=True)] == [k not in lost for k in chunks]
    assert world.rows("SELECT content FROM documents WHERE filename = 'long.txt'") == content
    assert paid(world, books) == charged
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


@ON_EACH_MILVUS
def test_a_collection_that_is_lost_is_filled_anew_free_of_charge(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymilvus import MilvusClient

    monkeypatch.setattr(reconcile, "DOCUMENTS_PER_PAGE", 1)
    charged, chunks = paid(world, books), len(world.keys(books))
    MilvusClient(world.milvus_uri).drop_collection(world.services.vectors.collection)
    report = world.sweep_all()
    assert report == Report(vectors=Vectors(vectors_missing=chunks, documents_repaired=2, vectors_retired=chunks))
    assert world.sweep_all() == NOTHING
    world.process(books)
    assert found(world, books) == {"bread.txt", "long.txt"}
    assert (len(world.keys(books)), paid(world, books)) == (chunks, charged)
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


def test_the_last_good_version_is_repaired_and_the_failure_of_the_newer_input_is_still_told(
    world: World, books: Dataset
) -> None:
    world.upload(books, {"bread.txt": b""})
    world.process(books)
    assert world.statuses(books)["bread.txt"] == "failed"
    assert found(world, books) == {"bread.txt", "long.txt"}
    lose(world, keys_of(world, "bread.txt"))
    assert found(world, books) == {"long.txt"}
    assert world.sweep_all().vectors.documents_repaired == 1
    world.process(books)
    assert found(world, books) == {"bread.txt", "long.txt"}
    assert world.statuses(books)["bread.txt"] == "failed"
    assert world.rows("SELECT error_code FROM pipeline.documents WHERE error_code IS NOT NULL") == [("empty",)]
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


@ON_EACH_MILVUS
def test_an_edit_under_way_whose_kept_vector_a_pass_found_lost_makes_it_anew(world: World, books: Dataset) -> None:
    kept = keys_of(world, "long.txt")[1]
    plan_the_edit(world, books)
    lose(world, [kept])
    assert world.sweep_all() == Report(vectors=Vectors(vectors_missing=1, vectors_retired=1))
    assert world.stage(Embed(world.services), books).done == 1
    assert compare(world.services, books.id).none
    world.sweep_all(list_keys=False)
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


def test_an_edit_behind_the_loss_mends_it_by_itself(world: World, books: Dataset) -> None:
    lose(world, keys_of(world, "long.txt")[:2])
    world.sweep_all()
    world.upload(books, {"long.txt": EDITED})
    world.process(books)
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


def price_of_the_edit_where_nothing_is_lost(world: World) -> int:
    dataset = world.dataset(world.user(), "undamaged")
    world.upload(dataset, {"same.txt": long_text(12)})
    world.process(dataset)
    before = paid(world, dataset)
    world.upload(dataset, {"same.txt": EDITED})
    world.process(dataset)
    return paid(world, dataset) - before


@ON_EACH_MILVUS
@pytest.mark.parametrize("when", ["before the plan", "behind the plan", "before the plan, told by a pass"])
def test_what_an_edit_keeps_and_milvus_has_lost_is_made_anew_before_the_publish_and_free(
    world: World, books: Dataset, when: str
) -> None:
    price, before = price_of_the_edit_where_nothing_is_lost(world), paid(world, books)
    lost = keys_of(world, "long.txt")[:2]
    if when.startswith("before the plan"):
        lose(world, lost)
    if when.endswith("told by a pass"):
        with transaction(world.services.fltr) as tx:
            assert manifest.lose(tx, lost, world.services.fingerprint) == 2
    plan_the_edit(world, books)
    if when == "behind the plan":
        lose(world, lost)
    assert (world.stage(Embed(world.services), books).done, compare(world.services, books.id).none) == (1, True)
    assert not set(lost) & set(keys_of(world, "long.txt"))
    assert paid(world, books) - before == price
    settles(world)


def test_a_key_that_is_retired_while_a_plan_is_made_is_not_kept_by_it(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though Milvus shows it again by then: the sweep will take it."""
    lost = keys_of(world, "long.txt")[:2]
    chunking = Plan._plan

    def meanwhile(self: Plan, text: str, kept: Mapping[str, Sequence[str | None]]) -> list[PlannedChunk]:
        lose(world, lost)
        with transaction(world.services.fltr) as tx:
            manifest.lose(tx, lost, world.services.fingerprint)
        strangers(world, books.id, lost)
        monkeypatch.setattr(Plan, "_plan", chunking)
        return chunking(self, text, kept)

    monkeypatch.setattr(Plan, "_plan", meanwhile)
    plan_the_edit(world, books)
    world.stage(Embed(world.services), books)
    assert not set(lost) & set(keys_of(world, "long.txt"))
    settles(world)


def test_what_is_lost_while_others_are_embedded_is_made_anew_by_the_next_try(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_the_edit(world, books)
    insert, lost = VectorStore.insert, keys_of(world, "long.txt")[:1]

    def meanwhile(self: VectorStore, rows: Sequence[VectorRow]) -> None:
        insert(self, rows)
        lose(world, lost)
        assert world.sweep_all().vectors.vectors_missing == 1

    with monkeypatch.context() as patch:
        patch.setattr(VectorStore, "insert", meanwhile)
        with pytest.raises(StoreUnavailable, match="lost"):
            world.stage(Embed(world.services), books)
    world.change("UPDATE pipeline.documents SET retry_at = NULL")
    assert world.stage(Embed(world.services), books).done == 1
    settles(world)


def test_stale_documents_are_left_to_the_backfill(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(world, keys_of(world, "bread.txt"))
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "40")
    del world.services
    assert world.sweep_all() == NOTHING
    assert len(compare(world.services, books.id).missing) == 1
    world.process(books, ReprocessMode.stale)
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


def test_a_text_that_the_application_overwrote_is_extracted_again(world: World, books: Dataset) -> None:
    lose(world, keys_of(world, "bread.txt"))
    world.change("UPDATE documents SET content = 'scribbled over' WHERE filename = 'bread.txt'")
    assert world.sweep_all().vectors.documents_repaired == 1
    world.process(books)
    assert world.rows("SELECT content FROM documents WHERE filename = 'bread.txt'") == [(BREAD.decode(),)]
    assert (compare_all(world.services), world.sweep_all()) == ({}, NOTHING)


def test_a_document_that_is_deleted_while_it_waits_for_its_repair_is_gone(world: World, books: Dataset) -> None:
    lose(world, keys_of(world, "long.txt")[:1])
    world.sweep_all()
    world.change("DELETE FROM documents WHERE filename = 'long.txt'")
    assert world.sweep_all().withdrawn == Withdrawn(documents_deleted=1)
    assert (len(world.keys(books)), compare_all(world.services), world.sweep_all()) == (1, {}, NOTHING)


# --- during a long listing --------------------------------------------------------------------------------------------


def test_a_lease_that_runs_out_while_all_keys_are_listed_does_not_wait_for_the_end(
    world: World, books: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "_SHORT_PASS_SECONDS", -1.0)
    world.upload(books, {"new.txt": TREATY})
    page = manifest.live_page

    def meanwhile(*arguments: object) -> object:
        with transaction(world.services.fltr) as tx:
            claims.claim(tx, dataset_id=books.id, stage=Stage.EXTRACT, run_id="dead", limit=9, lease_seconds=600)
            leases.expire_runs(tx, ["dead"])
        return page(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(manifest, "live_page", meanwhile)
    assert world.sweep_all().swept.documents >= 1
