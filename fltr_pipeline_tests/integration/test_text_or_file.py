"""A document is a file or inline text: a file that is there counts; what was published of one is no inline text."""

import pytest

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import deleted, requeue
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.shelves import Encoded, move
from fltr_pipeline_tests.world import BREAD, TREATY, World

NAME = "a.pdf.txt"
PAGE = b"<!doctype html><html><body><p>&lt;html&gt; begins a page, &lt;body&gt; what it shows.</p></body></html>"
WORDS = "Typed in by hand: the peace was signed in Muenster."


@pytest.fixture
def dataset(world: World, encoded: Encoded) -> Dataset:
    world.blobs.mkdir(exist_ok=True)
    return world.dataset(world.user(credits=60))


def upload_file(world: World, dataset: Dataset, data: bytes = TREATY) -> None:
    world.upload(dataset, {NAME: data})


def upload_text(world: World, dataset: Dataset, words: str = WORDS) -> None:
    """As the application does it: in one statement."""
    known = world.rows("SELECT id FROM documents")
    insert = "INSERT INTO documents (id, dataset_id, filename, content, status) VALUES ('n-1', %s, %s, %s, 'uploaded')"
    if known:
        world.change("UPDATE documents SET content = %s, status = 'uploaded', updated_at = now()", words)
    else:
        world.change(insert, dataset.id, NAME, words)


def mark(world: World) -> None:
    """An upload that brings nothing new."""
    world.change("UPDATE documents SET status = 'uploaded', updated_at = now()")


def remove_files(world: World) -> None:
    for file in world.blobs.glob("*/*/*"):
        file.unlink()


def content(world: World) -> str:
    ((text, status),) = world.rows("SELECT content, status FROM documents")
    assert status == "ready"
    return str(text)


def charged(world: World) -> int:
    query = "SELECT -coalesce(sum(amount), 0) FROM credit_transactions WHERE type IN ('usage', 'refund')"
    ((used,),) = world.auth_rows(query)
    return int(used)


def test_what_was_published_last_is_no_text_that_was_uploaded(world: World, dataset: Dataset) -> None:
    upload_file(world, dataset)
    world.process(dataset)
    spent = charged(world)
    remove_files(world)
    for _ in range(2):
        mark(world)
        _, extracted, *_ = world.process(dataset)
        assert ([f.code for f in extracted.failures], charged(world)) == (["missing_upload"], spent)
    ((document,),) = world.rows("SELECT id FROM documents")
    world.services.blobs.put(dataset.id, document, NAME, BREAD)  # late, and not marked again
    world.process(dataset, ReprocessMode.failed)
    assert content(world) == BREAD.decode()


def test_it_is_none_either_where_its_generation_is_gone(world: World, dataset: Dataset) -> None:
    """An upload is moved, and there is no file, neither here nor there."""
    upload_file(world, dataset)
    world.process(dataset)
    spent = charged(world)
    remove_files(world)
    mark(world)
    ((document,),) = world.rows("SELECT id FROM documents")
    other = world.dataset(world.user(credits=60))
    move(world, document, other)
    for mode in (ReprocessMode.pending, ReprocessMode.failed):
        _, extracted, *_ = world.process(other, mode)
        assert ([f.code for f in extracted.failures], charged(world)) == (["missing_upload"], spent)


def test_what_comes_back_without_its_file_is_made_of_what_was_published_and_is_no_upload(
    world: World, dataset: Dataset
) -> None:
    """The dataset's owner was gone for a while."""
    upload_file(world, dataset)
    world.process(dataset)
    published, spent = content(world), charged(world)
    remove_files(world)
    ids = [document for (document,) in world.rows("SELECT id::text FROM documents")]
    with transaction(world.services.fltr) as tx:
        deleted.withdraw(tx, ids, [dataset.user_id], "the owner is gone")
        requeue.restore(tx, ids, but_of=[])
    world.process(dataset)
    assert (content(world), charged(world)) == (published, spent)
    mark(world)
    _, extracted, *_ = world.process(dataset)
    assert ([f.code for f in extracted.failures], charged(world)) == (["missing_upload"], spent)


def test_a_redo_without_the_file_takes_what_was_published_of_it(world: World, dataset: Dataset) -> None:
    """As it is, though it reads like a page; and it still is that of the file. So do those of inline text from before
    its generations said so.
    """
    source = "SELECT extractor, fingerprint, engine, kind, source_sha256, pages, ocr_pages FROM pipeline.generations"
    upload_file(world, dataset, PAGE)
    world.process(dataset)
    published, spent, made = content(world), charged(world), world.rows(source)
    assert published.startswith("<html>")
    remove_files(world)
    world.change("UPDATE pipeline.generations SET extractor = 'another', fingerprint = 'another'")
    _, extracted, *_ = world.process(dataset, ReprocessMode.stale)
    assert (extracted.failures, content(world), charged(world), world.rows(source)) == ([], published, spent, made)
    mark(world)
    _, extracted, *_ = world.process(dataset)
    assert [f.code for f in extracted.failures] == ["missing_upload"]
    upload_file(world, dataset, PAGE)
    _, extracted, *_ = world.process(dataset)
    assert (extracted.counts["unchanged"], content(world), charged(world)) == (1, published, spent)


def test_a_redo_of_text_looks_for_no_file(world: World, dataset: Dataset) -> None:
    """The document was moved to and fro; where it is now, the file that it once had still lies."""
    upload_file(world, dataset)
    world.process(dataset)
    ((document,),) = world.rows("SELECT id FROM documents")
    other = world.dataset(world.user(credits=60))
    move(world, document, other)
    world.sweep_all(list_keys=False)
    world.process(other)
    for file in world.blobs.glob(f"{other.id}/*/*"):
        file.unlink()
    upload_text(world, other)
    world.process(other)
    move(world, document, dataset)
    world.sweep_all(list_keys=False)
    world.process(dataset)
    world.change("UPDATE pipeline.generations SET extractor = 'another'")
    world.process(dataset, ReprocessMode.stale)
    assert content(world) == WORDS
    mark(world)
    world.process(dataset)
    assert content(world) == TREATY.decode(), "an upload does"


def test_text_takes_the_place_of_a_file_that_was_removed_and_a_file_that_of_text(
    world: World, dataset: Dataset
) -> None:
    upload_file(world, dataset)
    world.process(dataset)
    remove_files(world)
    upload_text(world, dataset)
    world.process(dataset)
    assert content(world) == WORDS
    upload_file(world, dataset)
    world.process(dataset)
    assert content(world) == TREATY.decode()


def test_text_that_comes_again_is_known(world: World, dataset: Dataset) -> None:
    """Also where not every blank of it was published."""
    upload_text(world, dataset, f"{WORDS}   \r\n\r\nMore.   \r\n")
    world.process(dataset)
    published, spent = content(world), charged(world)
    assert published.startswith(WORDS)
    mark(world)
    _, extracted, planned, _ = world.process(dataset)
    assert (extracted.counts["unchanged"], planned.claimed) == (1, 0)
    assert (content(world), charged(world)) == (published, spent)
