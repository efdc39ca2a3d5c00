"""The four ops on real stores, without Dagster: what a document, a balance and a vector go through."""

import uuid
from collections.abc import Sequence

import pytest

from fltr_pipeline.errors import TimeLimit
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.stage import Result
from fltr_pipeline.text.parse.sample import OLE
from fltr_pipeline_tests import pdfs
from fltr_pipeline_tests.world import BREAD, TREATY, World


def test_documents_become_searchable_and_are_charged(world: World) -> None:
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.upload(dataset, {"treaty.txt": TREATY, "bread.md": BREAD})

    world.process(dataset)

    assert world.statuses(dataset) == {"treaty.txt": "ready", "bread.md": "ready"}
    best = search(world.services, dataset.id, "how do I bake a loaf?", k=1)[0].place
    assert (best.filename, best.page) == ("bread.md", 1)
    content = world.rows("SELECT content FROM documents WHERE filename = 'bread.md'")[0][0]
    assert content[best.start : best.end] == best.text
    statement = world.statement(payer)
    assert (statement.reserved, statement.charged, statement.held, statement.available) == (4, 4, 0, 6)
    assert compare(world.services, dataset.id).none
    assert set(world.rows("SELECT status FROM processing_jobs")) == {("completed",)}


BAD = {
    "picture.pdf": (b"\x89PNG\r\n\x1a\n" + bytes(64), "unsupported"),
    "office.doc": (OLE + bytes(600), "unsupported"),
    "program.exe": (b"MZ\x90\x00" + bytes(200), "unsupported"),
    "empty.txt": (b"", "empty"),
    "blank.md": (b" \n\t\n ", "empty"),
    "broken.pdf": (b"%PDF-1.7\n1 0 obj << garbage", "corrupt"),
    "secret.pdf": (pdfs.pdf(["Nobody may read this."], password="x"), "encrypted"),
    "scan.pdf": (pdfs.pdf(["", ""]), "no_text_layer"),
}


def test_bad_files_fail_for_their_own_reason_and_cost_nothing(world: World) -> None:
    payer = world.user(credits=30)
    dataset = world.dataset(payer)
    page = b"<!doctype html><html><body><p>Not a PDF at all.</p></body></html>"
    good = {"good.txt": TREATY, "mislabelled.pdf": page}
    world.upload(dataset, {name: data for name, (data, _) in BAD.items()} | good)

    _, extracted, *_ = world.process(dataset)

    assert world.statuses(dataset) == dict.fromkeys(BAD, "failed") | dict.fromkeys(good, "ready")
    codes = dict(
        world.rows(
            "SELECT d.filename, p.error_code FROM documents d JOIN pipeline.documents p ON p.document_id = d.id"
            " WHERE d.status = 'failed'"
        )
    )
    assert codes == {name: code for name, (_, code) in BAD.items()}
    assert {f.filename: f.code for f in extracted.failures} == codes
    assert all(f.filename in f.message for f in extracted.failures)
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (4, 0, 26)
    assert dict(world.rows("SELECT status, count(*) FROM processing_jobs GROUP BY 1")) == {
        "failed": len(BAD),
        "completed": len(good),
    }


def test_a_pot_that_covers_some_pays_for_those_whole_and_the_rest_waits_uncharged(world: World) -> None:
    payer = world.user(credits=5)
    dataset = world.dataset(payer)
    world.upload(dataset, {f"{n}.txt": TREATY + bytes([65 + n]) for n in range(6)})

    world.process(dataset)
    assert sorted(world.statuses(dataset).values()) == ["awaiting_credits"] * 4 + ["ready"] * 2
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (4, 0, 1)
    world.process(dataset)
    assert world.statement(payer).charged == 4, "one credit is not enough for a document, so it buys no part of one"
    world.services.ledger.grant(payer, 7, reason="top-up")
    world.process(dataset)
    assert set(world.statuses(dataset).values()) == {"ready"}
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (12, 0, 0)


def test_awaiting_credits_costs_nothing(world: World) -> None:
    payer = world.user(credits=0)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "awaiting_credits"}
    assert world.auth_rows("SELECT count(*) FROM credit_transactions") == [(0,)]


def test_an_upload_in_the_middle_of_the_work_wins(world: World) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    world.extract(dataset)
    world.upload(dataset, {"a.txt": BREAD})
    # The plan of the old input is not made, the old text is not published.
    assert world.stage(Plan(world.services), dataset).done == 0
    assert world.statuses(dataset) == {"a.txt": "uploaded"}
    world.process(dataset)
    assert world.rows("SELECT content FROM documents")[0][0].startswith("# Bread")
    assert world.statement(payer).held == 0
    assert sorted(world.rows("SELECT status FROM processing_jobs")) == [("canceled",), ("completed",)]


def test_an_upload_just_before_the_publish_wins(world: World) -> None:
    dataset = world.dataset(world.user(credits=20))
    world.upload(dataset, {"a.txt": TREATY})
    world.extract(dataset)
    world.stage(Plan(world.services), dataset)
    work = Embed(world.services)
    publish = work.finish

    def overtaken(results: Sequence[Result]) -> set[str]:
        world.upload(dataset, {"a.txt": BREAD})
        return publish(results)

    work.finish = overtaken  # type: ignore[method-assign]
    report = world.stage(work, dataset)
    assert (report.done, report.lost) == (0, 1)
    assert world.statuses(dataset) == {"a.txt": "uploaded"}
    world.process(dataset)
    assert world.rows("SELECT content FROM documents")[0][0].startswith("# Bread")
    assert compare(world.services, dataset.id).none


def test_an_owner_who_is_gone_fails_the_documents_not_the_run(world: World) -> None:
    payer = world.user()
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    world.change_auth("DELETE FROM users WHERE id = %s", payer.user_id)
    _, extracted, *_ = world.process(dataset)
    assert [f.code for f in extracted.failures] == ["payer_gone"]
    assert world.statuses(dataset) == {"a.txt": "failed"}


def test_an_owner_deleted_in_the_middle_stops_the_work(world: World) -> None:
    payer = world.user()
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    world.extract(dataset)
    world.change_auth("DELETE FROM users WHERE id = %s", payer.user_id)
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "failed"}
    assert world.auth_rows("SELECT count(*) FROM credit_transactions") == [(0,)]


def test_a_document_deleted_in_the_middle_leaves_no_hold(world: World) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {"a.txt": TREATY, "b.md": BREAD})
    world.extract(dataset)
    world.change("DELETE FROM documents WHERE id = %s", ids["a.txt"])
    world.process(dataset)
    assert world.statuses(dataset) == {"b.md": "ready"}
    assert world.statement(payer).held == 0
    assert [h.place.filename for h in search(world.services, dataset.id, "treaty", k=5)] == ["b.md"]


def test_a_team_pays_for_its_member(world: World) -> None:
    payer = world.user(credits=7)
    team = str(uuid.uuid4())
    world.change_auth(
        "INSERT INTO teams (id, name, credits, owner_id) VALUES (%s, 'Readers', 50, %s)", team, payer.user_id
    )
    world.change_auth("UPDATE user_credits SET team_id = %s WHERE user_id = %s", team, payer.user_id)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    world.process(dataset)
    assert world.auth_rows("SELECT credits FROM teams") == [(48,)]
    assert world.auth_rows("SELECT credits FROM user_credits") == [(7,)]
    assert set(world.auth_rows("SELECT team_id FROM credit_transactions WHERE type = 'usage'")) == {(team,)}


def test_text_uploaded_inline(world: World) -> None:
    dataset = world.dataset(world.user())
    world.change(
        "INSERT INTO documents (id, dataset_id, filename, content, status) VALUES ('n-1', %s, 'note', %s, 'uploaded')",
        dataset.id, BREAD.decode(),
    )  # fmt: skip
    world.blobs.mkdir(exist_ok=True)
    world.process(dataset)
    assert world.statuses(dataset) == {"note": "ready"}


def test_an_upload_without_its_file_says_so(world: World) -> None:
    dataset = world.dataset(world.user())
    world.change(
        "INSERT INTO documents (id, dataset_id, filename, status) VALUES ('x', %s, 'lost.pdf', 'uploaded')", dataset.id
    )
    world.blobs.mkdir(exist_ok=True)
    _, extracted, *_ = world.process(dataset)
    assert [(f.code, f.filename) for f in extracted.failures] == [("missing_upload", "lost.pdf")]


def test_modes_of_reprocessing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = world.user(credits=40)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY, "b.md": BREAD, "bad.txt": b" "})
    world.process(dataset)
    spent = world.statement(payer).charged

    def done(mode: ReprocessMode) -> tuple[int, int, int]:
        _, extracted, planned, embedded = world.process(dataset, mode)
        return extracted.claimed, planned.done, embedded.counts["chunks_embedded"]

    assert done(ReprocessMode.pending) == (0, 0, 0)
    assert done(ReprocessMode.failed) == (1, 0, 0)
    assert done(ReprocessMode.stale) == (1, 0, 0)
    assert done(ReprocessMode.all) == (3, 0, 0)
    # Another configuration: stale documents are made anew, at our expense, and searchable all the while.
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "20")
    del world.services
    claimed, planned, embedded = done(ReprocessMode.stale)
    assert (claimed, planned) == (3, 2)
    assert embedded > 2
    assert done(ReprocessMode.stale) == (1, 0, 0)
    assert world.statement(payer).charged == spent
    assert compare(world.services, dataset.id).none


def test_charging_switched_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTR_CHARGING", "false")
    payer = world.user(credits=0)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert world.auth_rows("SELECT count(*) FROM credit_transactions") == [(0,)]
    assert dict(world.rows("SELECT op, state FROM pipeline.charges WHERE amount = 0")).keys() == {
        "dataset_setup", "document_extract", "document_plan", "document_embed"
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["uuid", "varchar(36)"])
def test_tables_made_by_the_application_with_other_id_types(world: World, kind: str) -> None:
    world.change("ALTER TABLE processing_jobs DROP CONSTRAINT processing_jobs_document_id_documents_id_fk")
    world.change("ALTER TABLE documents DROP CONSTRAINT documents_dataset_id_datasets_id_fk")
    for name in (
        "processing_jobs.id",
        "processing_jobs.document_id",
        "documents.id",
        "documents.dataset_id",
        "datasets.id",
    ):
        table, column = name.split(".")
        world.change(f"ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT")
        world.change(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {kind} USING {column}::{kind}")
    dataset = world.dataset(world.user())
    world.upload(dataset, {"a.txt": TREATY, "b.md": BREAD, "bad.txt": b""})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready", "b.md": "ready", "bad.txt": "failed"}
    assert search(world.services, dataset.id, "bread", k=1)[0].place.filename == "b.md"
    world.process(dataset, ReprocessMode.all)
    assert compare(world.services, dataset.id).none


@pytest.mark.parametrize(("switch", "charged"), [("false", 0), ("true", 1)])
def test_a_file_that_is_broken_by_its_own_fault_is_charged_only_where_that_is_wanted(
    world: World, monkeypatch: pytest.MonkeyPatch, switch: str, charged: int
) -> None:
    monkeypatch.setenv("FLTR_CHARGE_USER_ERRORS", switch)
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.upload(dataset, {"broken.pdf": b"%PDF-1.7 not really"})
    world.process(dataset)
    assert world.statuses(dataset) == {"broken.pdf": "failed"}
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (charged, 0, 10 - charged)


def test_a_limit_that_another_night_may_not_reach_is_never_charged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each night's backfill would charge it once more."""
    monkeypatch.setenv("FLTR_CHARGE_USER_ERRORS", "true")
    monkeypatch.setattr(
        Extract, "perform", lambda _, claimed, charges: [Result(c, error=TimeLimit("too slow")) for c in claimed]
    )
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.upload(dataset, {"slow.txt": TREATY})
    world.process(dataset)
    assert world.rows("SELECT error_code FROM pipeline.documents") == [("time_limit",)]
    assert world.statement(payer).available == 10


def test_a_document_whose_price_is_above_the_cap_fails_alone_and_costs_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTR_PRICES__EXTRACT", "2000000000")
    monkeypatch.setenv("FLTR_PRICES__EXTRACT_PAGES", "1")
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.upload(dataset, {"long.txt": b"x" * 9000, "none.txt": b"x"})
    _, extracted, *_ = world.process(dataset)
    assert {f.code for f in extracted.failures} == {"invalid_amount"}
    assert "an amount must be between 1 and 1000000" in extracted.failures[0].message
    assert world.rows("SELECT count(*) FROM pipeline.charges WHERE op = 'document_extract'") == [(0,)]
    assert world.statement(payer).available == 10
