"""A document in another dataset, by one UPDATE of the application: found there, for nothing, with its file."""

import shutil
from collections.abc import Callable, Mapping, Sequence

import pytest

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline import deletion, moves, sweeper
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import Drift, Published, check_published, compare_all
from fltr_pipeline.pipeline.stage import Result
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import charges as store
from fltr_pipeline.stores.fltr import datasets, locks
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.moments import before
from fltr_pipeline_tests.money import add_key, available
from fltr_pipeline_tests.shelves import TEXTS, Encoded, Shelves, found, is_at_rest, move
from fltr_pipeline_tests.world import World


def test_a_moved_document_is_found_in_its_new_dataset_without_embedding_or_charge(
    world: World, shelves: Shelves, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, spent = found(world, shelves.books), world.statement(shelves.payer).charged
    vectors = {v["text"]: v["vector"] for v in stored(world, shelves.books)}
    move(world, shelves.ids["a.txt"], shelves.other)
    assert found(world, shelves.books).keys() == {"b.txt"}
    assert found(world, shelves.other) == {}
    monkeypatch.setattr(deletion, "PAGE", 1)
    monkeypatch.setattr(sweeper, "_LOOK_SECONDS", 0.0)
    probes = [sweeper.probe(world.services, after) for after in ("", min(shelves.ids.values()))]
    assert sorted(p.found for p in probes) == ["", "a document was moved to another dataset"]
    (where,) = (p.next for p in probes if p.found)
    assert compare_all(world.services)[shelves.other.id] == Drift(0, frozenset(), frozenset(), moved=1)

    assert world.sweep_all(list_keys=False, after=where).withdrawn.documents_moved == 1
    assert {sweeper.probe(world.services, after).found for after in ("", min(shelves.ids.values()))} == {""}
    encoded.texts.clear()
    world.process(shelves.other)
    assert encoded.texts == []
    assert found(world, shelves.other) == {"a.txt": before["a.txt"]}
    assert found(world, shelves.books) == {"b.txt": before["b.txt"]}
    moved = {v["text"]: v["vector"] for v in stored(world, shelves.other)}
    assert moved.keys() == before["a.txt"]
    assert all(vectors[text] == vector for text, vector in moved.items())
    assert world.keys(shelves.books) == {v["key"] for v in stored(world, shelves.books)}
    assert world.statement(shelves.payer).charged == spent
    assert world.statement(shelves.other_payer).charged == 0
    assert is_at_rest(world)

    # Its file came along: it can be processed there, with all of the other dataset's files gone.
    shutil.rmtree(world.blobs / shelves.books.id / shelves.ids["a.txt"])
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "40")
    del world.services
    world.process(shelves.other, ReprocessMode.all)
    assert world.statuses(shelves.other) == {"a.txt": "ready"}
    assert is_at_rest(world)


def stored(world: World, dataset: Dataset) -> list[dict[str, object]]:
    """Rows in Milvus: key, text, vector."""
    from pymilvus import MilvusClient

    client = MilvusClient(uri=world.milvus_uri)
    try:
        rows = client.query(
            world.services.vectors.collection, filter=f'dataset_id == "{dataset.id}"',
            output_fields=["key", "text", "vector"], consistency_level="Strong",
        )  # fmt: skip
    finally:
        client.close()
    return [{**row, "vector": [float(x) for x in row["vector"]]} for row in rows]


def test_what_milvus_has_lost_of_a_moved_document_is_made_anew_and_free(
    world: World, shelves: Shelves, encoded: Encoded
) -> None:
    lost = stored(world, shelves.books)[0]
    world.services.vectors.delete([str(lost["key"])])
    for document_id in shelves.ids.values():
        move(world, document_id, shelves.other)
    world.sweep_all(list_keys=False)
    world.process(shelves.other)
    assert encoded.texts == [lost["text"]]
    assert found(world, shelves.other).keys() == TEXTS.keys()
    assert world.keys(shelves.books) == set()
    assert world.statement(shelves.other_payer).charged == 0
    assert is_at_rest(world)


@pytest.mark.parametrize("how", ["parked", "awaits credits", "an edit of what was searchable"])
def test_what_was_under_way_is_an_upload_to_the_new_dataset_and_the_old_ones_owner_pays_nothing_for_it(
    world: World, shelves: Shelves, how: str
) -> None:
    books, payer = shelves.books, shelves.payer
    if how == "awaits credits":
        payer = world.user(0)
        books = world.dataset(payer)
    name = "a.txt" if how == "an edit of what was searchable" else "c.txt"
    spent = world.statement(payer).charged
    ids = world.upload(books, {name: b"Another text."})
    world.extract(books)
    move(world, ids[name], shelves.other)
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    assert world.statuses(shelves.other) == {name: "uploaded"}
    world.process(shelves.other)
    assert found(world, shelves.other) == {name: {"Another text."}}
    assert (world.statement(payer).charged, world.statement(payer).held) == (spent, 0)
    assert world.statement(shelves.other_payer).charged == 2
    assert name not in found(world, books)
    world.sweep_all()
    assert is_at_rest(world)


@pytest.mark.parametrize("how", ["found parked", "overtaken before the decision", "overtaken behind it"])
def test_what_an_attempt_cost_that_ended_before_its_document_was_followed_elsewhere_goes_back(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A newer upload, moved, ends it where it stands; so nobody works on it when a pass comes by."""
    spent = world.statement(shelves.payer).charged
    ids = world.upload(shelves.books, {"c.txt": b"A third text."})

    def upload_and_move() -> None:
        world.upload(shelves.books, {"c.txt": b"A third text, mended."})
        move(world, ids["c.txt"], shelves.other)

    if how == "found parked":
        world.extract(shelves.books)
        upload_and_move()
        world.stage(Plan(world.services), shelves.books)
    else:
        step = "perform" if how == "overtaken before the decision" else "finish"
        work = getattr(Embed, step)

        def and_is_overtaken(*arguments: object) -> object:
            upload_and_move()
            return work(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Embed, step, and_is_overtaken)
            world.process(shelves.books)
    assert world.statement(shelves.payer).charged > spent
    assert world.rows("SELECT stage FROM pipeline.documents WHERE document_id = %s", ids["c.txt"]) == [(None,)]
    world.sweep_all(list_keys=False)
    world.process(shelves.other)
    assert found(world, shelves.other) == {"c.txt": {"A third text, mended."}}
    assert (world.statement(shelves.payer).charged, world.statement(shelves.payer).held) == (spent, 0)
    assert world.statement(shelves.other_payer).charged == 2
    assert is_at_rest(world)


def test_an_upload_that_fails_where_it_was_moved_to_leaves_nothing_to_search_until_one_succeeds(
    world: World, shelves: Shelves
) -> None:
    published = world.rows("SELECT content FROM documents WHERE filename = 'a.txt'")
    world.upload(shelves.books, {"a.txt": b" "})
    move(world, shelves.ids["a.txt"], shelves.other)
    world.sweep_all(list_keys=False)
    world.process(shelves.other)
    assert world.statuses(shelves.other) == {"a.txt": "failed"}
    assert found(world, shelves.other) == {}
    assert world.rows("SELECT content FROM documents WHERE filename = 'a.txt'") == published
    world.upload(shelves.other, {"a.txt": b"A third text."})
    world.process(shelves.other)
    assert found(world, shelves.other) == {"a.txt": {"A third text."}}
    assert is_at_rest(world)


def test_a_document_in_a_workers_hands_is_left_to_them_and_then_follows(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, perform = world.upload(shelves.books, {"c.txt": b"A third text."}), Embed.perform

    def and_is_moved(self: Embed, claimed: Sequence[Claim], charges: Mapping[str, Charge]) -> Sequence[Result]:
        move(world, ids["c.txt"], shelves.other)
        assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 0
        return perform(self, claimed, charges)

    with monkeypatch.context() as patch:
        patch.setattr(Embed, "perform", and_is_moved)
        world.process(shelves.books)
    assert world.statuses(shelves.other) == {"c.txt": "ready"}
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    world.process(shelves.other)
    assert found(world, shelves.other).keys() == {"c.txt"}
    assert world.statement(shelves.other_payer).charged == 0
    assert is_at_rest(world)


def test_what_a_worker_has_brought_to_its_next_step_is_not_taken_up_where_it_was(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = world.statement(shelves.payer).charged
    ids, perform = world.upload(shelves.books, {"c.txt": b"A third text."}), Extract.perform

    def and_is_moved(self: Extract, claimed: Sequence[Claim], charges: Mapping[str, Charge]) -> Sequence[Result]:
        move(world, ids["c.txt"], shelves.other)
        return perform(self, claimed, charges)

    with monkeypatch.context() as patch:
        patch.setattr(Extract, "perform", and_is_moved)
        assert [r.claimed for r in world.process(shelves.books)] == [1, 1, 0, 0]
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    world.process(shelves.other)
    assert found(world, shelves.other).keys() == {"c.txt"}
    assert (world.statement(shelves.payer).charged, world.statement(shelves.payer).held) == (spent, 0)
    assert world.statement(shelves.other_payer).charged == 2
    assert is_at_rest(world)


def test_no_run_is_launched_for_what_was_moved_while_somebody_holds_its_row(world: World, shelves: Shelves) -> None:
    ids = world.upload(shelves.books, {"c.txt": b"A third text."})
    world.extract(shelves.books)
    world.upload(shelves.books, {"c.txt": b"A third text, mended."})
    move(world, ids["c.txt"], shelves.other)

    def waiting() -> list[str]:
        with transaction(world.services.fltr) as tx:
            return [b.dataset_id for b in datasets.backlog(tx)]

    with transaction(world.services.fltr) as application:
        locks.lock_documents(application, [ids["c.txt"]])
        assert shelves.other.id in waiting()
        moves.follow_arrivals(world.services, shelves.other.id)
        assert waiting() == []
    world.change("UPDATE pipeline.documents SET retry_at = now()")  # five minutes pass
    moves.follow_arrivals(world.services, shelves.other.id)
    world.process(shelves.other)
    assert world.statuses(shelves.other)["c.txt"] == "ready"


def dies(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", ["it lives on", "it dies before it records that"])
def test_what_a_worker_settles_after_its_document_was_followed_elsewhere_goes_back(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A newer upload, moved, overtakes a worker that has the older one in hand."""
    ids, perform = world.upload(shelves.books, {"c.txt": b"A third text."}), Extract.perform

    def and_is_overtaken(self: Extract, claimed: Sequence[Claim], charges: Mapping[str, Charge]) -> Sequence[Result]:
        results = perform(self, claimed, charges)
        world.upload(shelves.books, {"c.txt": b"A third text, mended."})
        move(world, ids["c.txt"], shelves.other)
        moves.follow_arrivals(world.services, shelves.other.id)
        return results

    spent = world.statement(shelves.payer).charged
    with monkeypatch.context() as patch:
        patch.setattr(Extract, "perform", and_is_overtaken)
        if end == "it lives on":
            world.extract(shelves.books)
        else:
            patch.setattr(store, "close_charges", dies)
            with pytest.raises(KeyboardInterrupt):
                world.extract(shelves.books)
    world.process(shelves.other)
    world.sweep_all()
    assert found(world, shelves.other) == {"c.txt": {"A third text, mended."}}
    assert (world.statement(shelves.payer).charged, world.statement(shelves.payer).held) == (spent, 0)
    assert world.statement(shelves.other_payer).charged == 2
    assert is_at_rest(world)


@pytest.mark.parametrize("owner", ["the same", "another"])
def test_an_api_key_of_the_old_owner_pays_for_nothing_of_a_new_one(world: World, shelves: Shelves, owner: str) -> None:
    payer = shelves.payer if owner == "the same" else shelves.other_payer
    target = world.dataset(payer, "target")
    key = add_key(world, shelves.payer, credits=10, daily=10, monthly=10)
    world.change(
        "UPDATE pipeline.documents SET api_key_id = %s WHERE document_id = %s",
        key.payer.api_key_id, shelves.ids["a.txt"],
    )  # fmt: skip
    move(world, shelves.ids["a.txt"], target)
    world.sweep_all(list_keys=False)
    kept = world.rows("SELECT api_key_id FROM pipeline.documents WHERE document_id = %s", shelves.ids["a.txt"])
    assert kept == [(key.payer.api_key_id if owner == "the same" else None,)]
    world.process(target)
    assert world.statuses(target) == {"a.txt": "ready"}


@pytest.mark.parametrize("seen_by", ["a pass", "a run"])
@pytest.mark.parametrize(
    ("named", "pays"),
    [("the old owner's", "the new owner"), ("the new owner's", "the key"), ("both owners'", "the key"),
     ("a stranger's", "nobody")],
)  # fmt: skip
def test_an_upload_that_was_moved_leaves_the_old_owners_api_key_behind(
    world: World, shelves: Shelves, named: str, pays: str, seen_by: str
) -> None:
    target = shelves.other if named.endswith("owner's") else world.dataset(shelves.payer, "target")
    is_new_owners = named in {"the new owner's", "a stranger's"}
    key = add_key(world, shelves.other_payer if is_new_owners else shelves.payer, credits=10)
    payers = {"the key": key.payer, "the old owner": shelves.payer, "the new owner": shelves.other_payer}
    before = {name: available(world, payer) for name, payer in payers.items()}
    world.upload(shelves.books, {"a.txt": b"Another text."})
    move(world, shelves.ids["a.txt"], target)
    if named == "the new owner's":  # before anybody has seen the move
        world.upload(target, {"a.txt": b"Another text."})
    world.change("INSERT INTO pipeline.upload_keys VALUES (%s, %s)", shelves.ids["a.txt"], key.digest)
    if seen_by == "a pass":
        world.sweep_all(list_keys=False)
    world.process(target)
    assert world.statuses(target) == {"a.txt": "failed" if pays == "nobody" else "ready"}
    spent = {name: before[name] - available(world, payer) for name, payer in payers.items()}
    assert {name: credits for name, credits in spent.items() if credits} == ({} if pays == "nobody" else {pays: 2})


def test_where_the_new_owner_has_no_account_no_api_key_is_taken_for_the_old_owners(
    world: World, shelves: Shelves
) -> None:
    """It may be another deployment's `fltr_auth` that was asked."""
    key = add_key(world, shelves.payer)
    world.upload(shelves.books, {"a.txt": b"Another text."})
    world.change("INSERT INTO pipeline.upload_keys VALUES (%s, %s)", shelves.ids["a.txt"], key.digest)
    move(world, shelves.ids["a.txt"], shelves.other)
    world.change("UPDATE datasets SET user_id = 'nobody' WHERE id = %s", shelves.other.id)
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    assert world.rows("SELECT api_key_id FROM pipeline.upload_keys") == [(key.digest,)]


def test_a_failed_document_and_one_that_was_moved_twice_end_where_they_were_moved_to(
    world: World, shelves: Shelves
) -> None:
    ids = world.upload(shelves.books, {"broken.pdf": b"%PDF-1.7 and no more"})
    world.process(shelves.books)
    third = world.dataset(shelves.payer, "third")
    for document_id in (ids["broken.pdf"], shelves.ids["a.txt"]):
        move(world, document_id, shelves.other)
    world.sweep_all(list_keys=False)
    move(world, shelves.ids["a.txt"], third)
    world.sweep_all(list_keys=False)
    world.process(shelves.other)
    world.process(third)
    assert world.statuses(shelves.other) == {"broken.pdf": "failed"}
    assert found(world, third).keys() == {"a.txt"}
    assert found(world, shelves.other) == {}
    assert is_at_rest(world)


@pytest.mark.parametrize("when", ["before the check", "in the middle of it"])
def test_a_run_checks_what_it_published_where_it_still_is_so(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A document is moved, and published in its new dataset, or published anew, before the run comes to its check."""
    ids, chunks = list(shelves.ids.values()), len(world.keys(shelves.books))
    assert check_published(world.services, shelves.books.id, ids) == Published(2, chunks, frozenset())
    if when == "before the check":
        move(world, shelves.ids["a.txt"], shelves.other)
        world.sweep_all(list_keys=False)
        world.process(shelves.other)
    else:
        world.upload(shelves.books, {"a.txt": b"Another text."})
        before(monkeypatch, 1, VectorStore, "present", lambda: world.process(shelves.books))
    assert check_published(world.services, shelves.books.id, ids).missing == frozenset()


def its_newer_input_failed(world: World, shelves: Shelves, _: pytest.MonkeyPatch) -> None:
    world.upload(shelves.books, {"a.txt": b""})
    world.process(shelves.books)
    assert world.statuses(shelves.books)["a.txt"] == "failed"


def its_file_is_lost(world: World, shelves: Shelves, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("fltr_pipeline.text.fingerprint.CLEANER_VERSION", "another")
    del world.services
    world.services.blobs.put(shelves.books.id, shelves.ids["a.txt"], "a.txt", b"")
    for _ in range(3):
        world.process(shelves.books, ReprocessMode.stale)
    assert world.statuses(shelves.books)["a.txt"] == "ready"


@pytest.mark.parametrize("but", [its_newer_input_failed, its_file_is_lost])
def test_what_is_searchable_is_so_again_where_it_was_moved_on_before_it_was_made_anew(
    world: World, shelves: Shelves, monkeypatch: pytest.MonkeyPatch, but: Callable[..., None]
) -> None:
    but(world, shelves, monkeypatch)
    before = found(world, shelves.books)
    for dataset in (shelves.other, shelves.books):
        move(world, shelves.ids["a.txt"], dataset)
        assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    for dataset in (shelves.books, shelves.other):
        world.process(dataset)
    assert (found(world, shelves.books), found(world, shelves.other)) == (before, {})
    world.sweep_all()
    assert world.keys(shelves.books) == {v["key"] for v in stored(world, shelves.books)}
    assert stored(world, shelves.other) == []
    assert is_at_rest(world)


def test_what_can_not_be_made_anew_where_it_was_moved_to_leaves_no_vectors(world: World, shelves: Shelves) -> None:
    """A newer text, uploaded inline, stands where that of the version before it was."""
    world.change("UPDATE documents SET content = '', status = 'uploaded' WHERE id = %s", shelves.ids["a.txt"])
    shutil.rmtree(world.blobs / shelves.books.id / shelves.ids["a.txt"])
    world.process(shelves.books)
    assert world.statuses(shelves.books)["a.txt"] == "failed"
    move(world, shelves.ids["a.txt"], shelves.other)
    assert world.sweep_all(list_keys=False).withdrawn.documents_moved == 1
    world.sweep_all()
    assert {v["key"] for v in stored(world, shelves.books)} == world.keys(shelves.books)
    assert world.rows("SELECT generation FROM pipeline.generations WHERE document_id = %s", shelves.ids["a.txt"]) == []
    assert is_at_rest(world)
