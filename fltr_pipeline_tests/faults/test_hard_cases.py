"""What goes wrong around a document: teams and payers that vanish, prices that change, code that breaks."""

import dataclasses
import uuid
from collections.abc import Sequence

import pytest

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import Op, ReprocessMode, VectorRow
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.billing import Quote
from fltr_pipeline.pipeline.embed import Embed, sweep
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.reconcile import compare
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.stage import Result
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import requeue
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline_tests.queries import redoing
from fltr_pipeline_tests.world import World

TEXT = b"The treaty of Westphalia ended the thirty years war in 1648."


def with_team(world: World, payer: Payer, balance: int) -> str:
    team = str(uuid.uuid4())
    world.change_auth(
        "INSERT INTO teams (id, name, credits, owner_id) VALUES (%s, 'T', %s, %s)", team, balance, payer.user_id
    )
    world.change_auth("UPDATE user_credits SET team_id = %s WHERE user_id = %s", team, payer.user_id)
    return team


def without_team(world: World, team: str) -> None:
    world.change_auth("UPDATE user_credits SET team_id = NULL")
    world.change_auth("DELETE FROM teams WHERE id = %s", team)


def test_a_team_deleted_while_it_pays_blocks_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = world.user(credits=50)
    team = with_team(world, payer, 50)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT})
    perform = Extract.perform

    def and_the_team_goes(self: Extract, claimed: Sequence[Claim], charges: dict[str, object]) -> Sequence[Result]:
        without_team(world, team)
        return perform(self, claimed, charges)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Extract, "perform", and_the_team_goes)
        world.extract(dataset)
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert world.statement(payer).held == 0


def test_documents_that_wait_for_a_pot_that_is_gone_are_told_so(world: World) -> None:
    payer = world.user(credits=50)
    team = with_team(world, payer, 0)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT})
    world.process(dataset)
    assert world.launchable() == {}
    without_team(world, team)
    assert world.launchable()[dataset.id] == 1
    world.process(dataset)
    assert world.rows("SELECT error_code FROM pipeline.documents") == [("pot_gone",)]
    world.process(dataset, ReprocessMode.failed)
    assert world.statuses(dataset) == {"a.txt": "ready"}


def test_what_was_paid_before_the_pot_of_the_next_step_vanished_goes_back(world: World) -> None:
    """Extracted by the user's own credits, to be embedded by a team's."""
    payer = world.user(credits=50)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT})
    world.extract(dataset)
    assert world.statement(payer).charged == 1
    team = with_team(world, payer, 0)
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "awaiting_credits"}
    without_team(world, team)
    world.process(dataset)
    assert world.rows("SELECT error_code FROM pipeline.documents") == [("pot_gone",)]
    assert (world.statement(payer).charged, world.statement(payer).held) == (0, 0)
    world.process(dataset, ReprocessMode.failed)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert world.statement(payer).charged == 2


def test_a_pot_that_pays_for_a_small_document_does_not_starve_behind_a_large_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTR_PRICES__EXTRACT_PAGES", "1")
    payer = world.user(credits=0)
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {"large.txt": TEXT * 500, "small.txt": TEXT})
    world.change("UPDATE documents SET id = 'a-large' WHERE id = %s", ids["large.txt"])
    world.services.blobs.put(dataset.id, "a-large", "large.txt", TEXT * 500)
    world.process(dataset)
    world.services.ledger.grant(payer, 2, reason="some")
    assert world.launchable()[dataset.id] == 1
    world.process(dataset)
    assert world.statuses(dataset) == {"large.txt": "awaiting_credits", "small.txt": "ready"}
    assert world.launchable() == {}, "no run is launched that could achieve nothing"


def test_the_application_may_touch_a_document_in_work(world: World) -> None:
    dataset = world.dataset(world.user())
    world.upload(dataset, {"a.txt": TEXT})
    world.extract(dataset)
    world.change("UPDATE documents SET filename = 'b.txt', updated_at = now()")
    world.process(dataset)
    assert world.statuses(dataset) == {"b.txt": "ready"}


def test_a_document_that_breaks_our_code_does_not_take_the_batch_along(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = world.user(credits=30)
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {f"{n}.txt": TEXT for n in range(4)} | {"bad.txt": TEXT})
    world.change(
        "INSERT INTO documents (id, dataset_id, filename, status) VALUES ('my note', %s, 'odd', 'uploaded')", dataset.id
    )
    planned = Plan._plan

    def breaks(self: Plan, text: str, kept: dict[str, list[str]]) -> object:
        raise RuntimeError("a bug\x00 with a NUL")

    def perform(self: Plan, claimed: Sequence[Claim], charges: dict[str, object]) -> Sequence[Result]:
        bad = any(c.document_id == ids["bad.txt"] for c in claimed)
        monkeypatch.setattr(Plan, "_plan", breaks if bad else planned)
        return original(self, claimed, charges)  # type: ignore[arg-type]

    original = Plan.perform
    monkeypatch.setattr(Plan, "perform", perform)
    world.process(dataset)
    assert world.statuses(dataset) == {f"{n}.txt": "ready" for n in range(4)} | {"bad.txt": "failed", "odd": "failed"}
    messages = dict(
        world.rows("SELECT document_id, error_message FROM pipeline.documents WHERE error_code = 'internal_error'")
    )
    assert "RuntimeError: a bug with a NUL" in messages[ids["bad.txt"]]
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (8, 0, 22), "its extraction was given back"


def test_a_batch_that_is_taken_apart_leaves_every_vector_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = world.dataset(world.user(credits=30))
    ids = world.upload(dataset, {f"{n}.txt": TEXT + bytes([65 + n]) for n in range(4)})
    insert = type(world.services.vectors).insert

    def breaks(self: object, rows: Sequence[VectorRow]) -> None:
        insert(self, rows)  # type: ignore[arg-type]
        if any(row.document_id == ids["2.txt"] for row in rows):
            raise RuntimeError("after the insert")

    monkeypatch.setattr(type(world.services.vectors), "insert", breaks)
    world.process(dataset)
    assert world.statuses(dataset) == {"0.txt": "ready", "1.txt": "ready", "2.txt": "failed", "3.txt": "ready"}
    sweep(world.services, dataset.id)
    drift = compare(world.services, dataset.id)
    assert (drift.live, drift.none) == (3, True)
    assert len(list(world.services.vectors.keys(dataset.id))) == 3


def test_work_that_we_fail_for_good_is_given_back_and_can_be_done_again(world: World) -> None:
    payer = world.user(credits=30)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT})
    world.extract(dataset)
    world.stage(Plan(world.services), dataset)
    limit = world.services.settings.max_attempts
    world.change("UPDATE pipeline.documents SET attempts = %s", limit)
    report = world.stage(Embed(world.services), dataset)
    assert [f.code for f in report.failures] == ["gave_up"]
    assert report.credits_returned == 1
    statement = world.statement(payer)
    assert (statement.charged, statement.held, statement.available) == (0, 0, 30)
    world.process(dataset, ReprocessMode.failed)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert world.statement(payer).charged == 2
    assert compare(world.services, dataset.id).none


def test_a_worker_that_was_taken_over_gives_nothing_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = world.user(credits=30)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT})
    world.extract(dataset)
    original = Plan.perform

    def breaks_late(self: Plan, claimed: Sequence[Claim], charges: dict[str, object]) -> Sequence[Result]:
        monkeypatch.setattr(Plan, "perform", original)
        world.change("UPDATE pipeline.documents SET lease_until = now() - interval '1 s'")
        world.process(dataset)  # somebody else finishes it meanwhile
        raise RuntimeError("much later")

    monkeypatch.setattr(Plan, "perform", breaks_late)
    report = world.stage(Plan(world.services), dataset)
    assert (report.failures, report.credits_returned) == ([], 0)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    statement = world.statement(payer)
    assert (statement.charged, statement.available) == (2, 28)


def test_vectors_of_a_failed_attempt_are_swept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = world.dataset(world.user(credits=30))
    world.upload(dataset, {"a.txt": TEXT})
    world.extract(dataset)
    world.stage(Plan(world.services), dataset)
    with monkeypatch.context() as patch:
        patch.setattr(type(world.services.vectors), "present", lambda *_: set())
        with pytest.raises(StoreUnavailable, match="can't be read back"):
            world.stage(Embed(world.services), dataset)
    assert len(set(world.services.vectors.keys(dataset.id))) == 1
    world.change("UPDATE pipeline.documents SET attempts = 99, retry_at = NULL")
    world.stage(Embed(world.services), dataset)
    assert world.statuses(dataset) == {"a.txt": "failed"}
    assert sweep(world.services, dataset.id) == 1
    assert set(world.services.vectors.keys(dataset.id)) == set()


def test_open_charges_of_two_generations_are_both_closed(world: World) -> None:
    payer = world.user(credits=30)
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {"a.txt": TEXT})
    for generation in (1, 2):
        quote = Quote(ids["a.txt"], generation, None, 1, True, payer, None, None)
        world.billing.reserve(Op.DOCUMENT_EXTRACT, dataset.id, [quote])
    assert world.statement(payer).held == 2
    swept = expiry.sweep(world.services, world.billing)
    assert (swept.charges, swept.credits_returned) == (2, 2)
    assert expiry.sweep(world.services, world.billing).nothing
    assert world.statement(payer).held == 0


def test_inline_text_costs_what_a_file_costs(world: World) -> None:
    payer = world.user(credits=30)
    dataset = world.dataset(payer)
    world.blobs.mkdir(exist_ok=True)
    words = " ".join(f"word{n}" for n in range(60_000))
    world.change(
        "INSERT INTO documents (id, dataset_id, filename, content, status) VALUES ('n', %s, 'note', %s, 'uploaded')",
        dataset.id, words,
    )  # fmt: skip
    world.extract(dataset)
    assert world.statement(payer).charged == -(-len(words) // 300_000) == 2


def test_a_file_above_the_limit_is_neither_read_nor_paid_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTR_MAX_DOCUMENT_MB", "1")
    payer = world.user(credits=4)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": b"x" * 3_000_000})
    monkeypatch.setattr(type(world.services.blobs), "read", lambda *_: pytest.fail("it was read"))
    world.extract(dataset)
    assert world.rows("SELECT error_code FROM pipeline.documents") == [("too_large",)]
    assert world.statement(payer).available == 4


def test_what_nobody_paid_for_is_not_published(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = world.user()
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT})
    world.extract(dataset)
    world.stage(Plan(world.services), dataset)
    perform = Embed.perform

    def and_the_payer_goes(self: Embed, claimed: Sequence[Claim], charges: dict[str, object]) -> Sequence[Result]:
        world.change_auth("DELETE FROM users WHERE id = %s", payer.user_id)
        return perform(self, claimed, charges)  # type: ignore[arg-type]

    monkeypatch.setattr(Embed, "perform", and_the_payer_goes)
    world.stage(Embed(world.services), dataset)
    assert world.rows(
        "SELECT status, content, error_code FROM documents JOIN pipeline.documents p ON document_id = id"
    ) == [("failed", None, "payer_gone")]


def test_a_set_up_that_is_not_paid_stops_the_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTR_PRICES__DATASET_SETUP", "10")
    payer = world.user(credits=5)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT, "b.txt": b""})
    for _ in range(2):
        world.process(dataset, ReprocessMode.all)
        assert set(world.statuses(dataset).values()) == {"awaiting_credits"}
        assert world.launchable() == {}
    assert world.auth_rows("SELECT count(*) FROM credit_transactions WHERE type = 'usage'") == [(0,)]
    world.services.ledger.grant(payer, 20, reason="top-up")
    assert world.launchable()[dataset.id] == 2
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready", "b.txt": "failed"}
    assert world.statement(payer).charged == 12


def test_a_price_that_changes_between_attempts_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = world.user(credits=30)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT})
    with monkeypatch.context() as patch:
        patch.setattr(Extract, "perform", lambda *_: (_ for _ in ()).throw(StoreUnavailable("down")))
        with pytest.raises(StoreUnavailable):
            world.extract(dataset)
    monkeypatch.setenv("FLTR_PRICES__EXTRACT", "7")
    monkeypatch.setenv("FLTR_PRICES__VERSION", "later")
    world.services = dataclasses.replace(world.services, settings=type(world.services.settings)())
    world.change("UPDATE pipeline.documents SET retry_at = NULL")
    world.extract(dataset)
    assert world.statement(payer).charged == 1
    kinds = "SELECT transaction_metadata->>'price_version' FROM credit_transactions WHERE type = 'usage'"
    assert set(world.auth_rows(kinds)) == {("2026-11",)}


def test_a_retry_of_a_step_goes_on_with_what_its_first_try_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = world.dataset(world.user())
    world.upload(dataset, {"a.txt": TEXT})
    worker = world.worker()
    with monkeypatch.context() as patch, Extract(world.services) as work:
        patch.setattr(
            "fltr_pipeline.stores.fltr.claims.retry_later", lambda *_: (_ for _ in ()).throw(StoreUnavailable("x"))
        )
        patch.setattr(Extract, "perform", lambda *_: (_ for _ in ()).throw(StoreUnavailable("down")))
        with pytest.raises(StoreUnavailable, match="down"):
            world.stage(work, dataset, worker)
    with Extract(world.services) as work:
        assert world.stage(work, dataset, worker).done == 1


def test_new_inline_text_is_no_citation_before_it_is_published(world: World) -> None:
    dataset = world.dataset(world.user())
    world.blobs.mkdir(exist_ok=True)
    world.change(
        "INSERT INTO documents (id, dataset_id, filename, content, status) VALUES ('n', %s, 'note', %s, 'uploaded')",
        dataset.id, TEXT.decode(),
    )  # fmt: skip
    world.process(dataset)
    assert len(search(world.services, dataset.id, "peace treaty")) == 1
    world.change("UPDATE documents SET content = 'How to bake bread.', status = 'uploaded', updated_at = now()")
    assert search(world.services, dataset.id, "peace treaty") == []
    world.process(dataset)
    assert search(world.services, dataset.id, "bread")[0].place.text == "How to bake bread."


def test_a_large_text_is_planned_and_embedded_in_one_pass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of chunks of one document: each is cut from the text in memory, not by the database."""
    model = type(world.services.model)
    monkeypatch.setattr(model, "encode", lambda self, texts: [[1.0] + [0.0] * (self.dimension - 1)] * len(texts))
    dataset = world.dataset(world.user(credits=500))
    paragraphs = [" ".join(f"word{(n * 31 + i * 7919) % 9973}" for i in range(40)) for n in range(6_000)]
    world.upload(dataset, {"a.txt": "\n\n".join(paragraphs).encode()})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert compare(world.services, dataset.id).live > 3_000


def test_a_backfill_leaves_the_documents_own_failures_alone(world: World) -> None:
    dataset = world.dataset(world.user())
    world.upload(dataset, {"a.txt": b"", "b.txt": b""})
    world.process(dataset)
    world.change(
        "UPDATE pipeline.documents SET error_code = 'gave_up' WHERE document_id = (SELECT min(id) FROM documents)"
    )
    redo = redoing(dataset.id, ReprocessMode.stale, fingerprint=world.services.fingerprint, retryable=["gave_up"])
    with transaction(world.services.fltr) as tx:
        queued = requeue.requeue(tx, redo, requeue.choose(tx, redo))
    assert queued == 1
    assert sorted(world.statuses(dataset).values()) == ["failed", "uploaded"]
