"""The four ops on documents that come again: what is the same is not done anew, what changed is."""

import hashlib
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection

from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline import reprocess
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.stores.fltr import requeue
from fltr_pipeline.text.parse.pool import ParserPool
from fltr_pipeline_tests.world import BREAD, TREATY, World


def long_text(paragraphs: int, changed: int | None = None) -> bytes:
    """Paragraphs of about sixty words, each unlike the others; one of them changed."""
    words = ["river", "stone", "lantern", "harbour", "orchard", "violin", "glacier", "pepper", "canvas", "meadow"]
    made = []
    for n in range(paragraphs):
        seed = n if n != changed else n + 7_000
        made.append(" ".join(f"{words[(seed + i * (seed % 7 + 1)) % 10]} {seed * 31 + i}" for i in range(30)) + ".")
    return "\n\n".join(made).encode()


def test_the_same_file_again_costs_nothing_and_keeps_its_vectors(world: World) -> None:
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    world.process(dataset)
    before = set(world.services.vectors.keys(dataset.id))

    world.upload(dataset, {"a.txt": TREATY})
    _, extracted, planned, embedded = world.process(dataset)

    assert (extracted.done, extracted.counts["unchanged"]) == (1, 1)
    assert (planned.claimed, embedded.claimed) == (0, 0), "it was done already"
    assert extracted.credits_reserved == 0
    assert set(world.services.vectors.keys(dataset.id)) == before
    assert world.statement(payer).charged == 2
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert set(world.rows("SELECT status FROM processing_jobs")) == {("completed",)}
    assert world.rows("SELECT generation, live_generation, stage FROM pipeline.documents") == [(2, 1, None)]


def test_the_same_file_again_needs_no_credits(world: World) -> None:
    payer = world.user(credits=2)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    world.process(dataset)
    assert world.statement(payer).available == 0
    world.upload(dataset, {"a.txt": TREATY})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert len(world.auth_rows("SELECT id FROM credit_transactions WHERE type = 'usage'")) == 4  # two holds, closed


def test_renaming_and_touching_embed_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {"a.txt": TREATY, "b.md": BREAD})
    world.process(dataset)
    before = set(world.services.vectors.keys(dataset.id))
    monkeypatch.setattr(
        ParserPool, "parse_all", lambda _, items, on_page: [pytest.fail("it was parsed") for _ in items]
    )

    world.change("UPDATE documents SET filename = 'folder/c.txt', updated_at = now() WHERE id = %s", ids["a.txt"])
    world.change("UPDATE documents SET filename = 'd.md', status = 'uploaded', updated_at = now() WHERE id = %s",
                 ids["b.md"])  # fmt: skip
    world.process(dataset)

    assert world.statuses(dataset) == {"folder/c.txt": "ready", "d.md": "ready"}
    assert set(world.services.vectors.keys(dataset.id)) == before
    assert world.statement(payer).charged == 4
    assert search(world.services, dataset.id, "treaty", k=1)[0].place.filename == "folder/c.txt"


def test_unchanged_bytes_under_another_configuration_are_planned_but_not_parsed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user(credits=10))
    world.upload(dataset, {"a.txt": TREATY, "b.md": BREAD})
    world.process(dataset)
    monkeypatch.setattr(
        ParserPool, "parse_all", lambda _, items, on_page: [pytest.fail("it was parsed") for _ in items]
    )
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "20")
    del world.services
    world.upload(dataset, {"a.txt": TREATY, "b.md": BREAD})
    _, extracted, planned, embedded = world.process(dataset)
    assert (extracted.counts["unchanged"], planned.done, embedded.done) == (2, 2, 2)
    assert compare(world.services, dataset.id).none


def test_inline_text_that_comes_again_is_published_as_it_was(world: World) -> None:
    """What is in `content` is then the upload, not the published text that was made from it."""
    dataset = world.dataset(world.user(credits=10))
    raw = "Trailing blanks are not kept.   \r\n\r\nA second paragraph.  \r\n"
    world.blobs.mkdir(exist_ok=True)
    world.change(
        "INSERT INTO documents (id, dataset_id, filename, content, status) VALUES ('n-1', %s, 'note', %s, 'uploaded')",
        dataset.id, raw,
    )  # fmt: skip
    world.process(dataset)
    ((published,),) = world.rows("SELECT content FROM documents")
    assert published != raw
    world.change("UPDATE documents SET content = %s, status = 'uploaded', updated_at = now()", raw)
    world.process(dataset)
    assert world.rows("SELECT content FROM documents") == [(published,)]
    for start, end, digest in world.rows("SELECT start_offset, end_offset, digest FROM pipeline.chunks"):
        assert hashlib.sha256(published[start:end].encode()).hexdigest() == digest
    assert compare(world.services, dataset.id).none


def test_unchanged_text_is_not_chunked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = world.dataset(world.user(credits=10))
    world.upload(dataset, {"a.txt": TREATY, "b.txt": BREAD})
    world.process(dataset)
    monkeypatch.setattr(Plan, "_plan", lambda *_: pytest.fail("it was chunked"))
    # The same text in other bytes (another line end) is read again, but goes no further.
    world.upload(dataset, {"a.txt": TREATY, "b.txt": BREAD.replace(b"\n", b"\r\n")})
    _, extracted, planned, embedded = world.process(dataset)
    assert (extracted.counts["unchanged"], planned.counts["chunks_reused"], embedded.done) == (1, 1, 1)
    assert compare(world.services, dataset.id).none


def test_an_edit_embeds_only_what_changed(world: World) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": long_text(40)})
    world.process(dataset)
    before = set(world.services.vectors.keys(dataset.id))
    assert len(before) > 15

    world.upload(dataset, {"a.txt": long_text(40, changed=20)})
    _, _, planned, embedded = world.process(dataset)

    assert 1 <= embedded.counts["chunks_embedded"] <= 4
    assert planned.counts["chunks_reused"] >= len(before) - 4
    after = set(world.services.vectors.keys(dataset.id))
    assert len(before - after) == len(before) - planned.counts["chunks_reused"]
    assert compare(world.services, dataset.id).none
    content = world.rows("SELECT content FROM documents")[0][0]
    for start, end, digest in world.rows("SELECT start_offset, end_offset, digest FROM pipeline.chunks"):
        assert hashlib.sha256(content[start:end].encode()).hexdigest() == digest


def test_the_old_version_is_searchable_until_the_new_one_is_published(world: World) -> None:
    dataset = world.dataset(world.user(credits=20))
    world.upload(dataset, {"a.txt": TREATY})
    world.process(dataset)
    world.upload(dataset, {"a.txt": BREAD})

    def old_version_is_found() -> bool:
        return "Westphalia" in search(world.services, dataset.id, "peace treaty", k=1)[0].place.text

    world.extract(dataset)
    assert world.statuses(dataset) == {"a.txt": "processing"}
    assert old_version_is_found()
    world.stage(Plan(world.services), dataset)
    assert world.statuses(dataset) == {"a.txt": "processing"}
    assert old_version_is_found()
    world.stage(Embed(world.services), dataset)

    assert "Flour" in search(world.services, dataset.id, "peace treaty", k=1)[0].place.text
    assert compare(world.services, dataset.id).none
    assert sweep(world.services, dataset.id) == 1
    assert len(set(world.services.vectors.keys(dataset.id))) == 1


def test_a_reprocessing_that_is_cut_off_between_two_pages_is_finished_by_the_next_call(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user(credits=20))
    world.upload(dataset, {f"{n}.txt": f"Of {n}.".encode() for n in range(4)} | {"empty.txt": b""})
    world.process(dataset)
    pages = []

    def cut_off(tx: Connection, redo: requeue.Redo, page: Sequence[str]) -> int:
        pages.append(len(page))
        if len(pages) == 2:
            raise StoreUnavailable("Postgres restarts")
        return queue_page(tx, redo, page)

    queue_page = requeue.requeue
    monkeypatch.setattr(requeue, "requeue", cut_off)
    monkeypatch.setattr(reprocess, "_PAGE", 2)
    with pytest.raises(StoreUnavailable):
        reprocess.requeue(world.services, dataset.id, ReprocessMode.all, charge=False)
    assert reprocess.remaining(world.services, dataset.id) == 2, "the first page is committed"
    assert reprocess.requeue(world.services, dataset.id, ReprocessMode.all, charge=False) == 3
    assert pages == [2, 2, 2, 1]
    assert reprocess.remaining(world.services, dataset.id) == 5
    assert world.rows("SELECT count(*) FROM processing_jobs WHERE status = 'queued'") == [(4,)], (
        "one for each that is ready"
    )
