"""The audit on a real ledger: what is right is balanced, what was changed is named, whatever else lies in the table."""

import hashlib
import threading
import tracemalloc
import uuid
from datetime import timedelta

import pytest
from sqlalchemy import text

from fltr_pipeline.credits.audit import Audit, run_audit
from fltr_pipeline.credits.holds import Close, CloseState, Hold, Payer, Pot
from fltr_pipeline.credits.invariants import Finding, Severity
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import Op
from fltr_pipeline.pipeline.audit import audit_ledger
from fltr_pipeline.pipeline.billing import hold_of
from fltr_pipeline.stores.auth import scan
from fltr_pipeline_tests.bills import Desk
from fltr_pipeline_tests.money import available
from fltr_pipeline_tests.world import World

HOUR = timedelta(hours=1)


def audited(world: World, overdue: timedelta = HOUR) -> Audit:
    return audit_ledger(world.services.fltr, world.services.ledger, overdue=overdue)


def only(audit: Audit) -> Finding:
    (finding,) = audit.findings
    return finding


def hold(payer: Payer, amount: int = 4, subject: str | None = None) -> Hold:
    return Hold(
        subject_id=subject or uuid.uuid4().hex, op=Op.DOCUMENT_EMBED, generation=1, sequence=1, amount=amount,
        payer=payer, job_id="job", run_id="run", price_version="2026-11", unit_price=1,
    )  # fmt: skip


def settle(h: Hold, charged: int) -> Close:
    return Close(h, charged, CloseState.SETTLED, "done")


def team(world: World, *members: Payer, credits: int = 100) -> Payer:
    """A team that pays for these users from now on: its payer for the first of them."""
    team_id = f"team-{uuid.uuid4().hex[:8]}"
    owner = world.user(0).user_id
    world.change_auth(
        "INSERT INTO teams (id, name, credits, owner_id) VALUES (%s, 'ours', %s, %s)", team_id, credits, owner
    )
    for member in members:
        world.change_auth("UPDATE user_credits SET team_id = %s WHERE user_id = %s", team_id, member.user_id)
    payer = world.services.ledger.payer(members[0].user_id)
    assert payer is not None
    return payer


def api_key(world: World, owner: Payer, credits: int = 100) -> tuple[str, Payer]:
    """A key with a pool of its own, and the payer of an upload that names it."""
    key = f"sk-{uuid.uuid4().hex}"
    world.change_auth(
        "INSERT INTO api_key_credits (api_key, user_id, credits) VALUES (%s, %s, %s)", key, owner.user_id, credits
    )
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key, world.services.ledger.payers(owner.user_id, [digest])[digest]


def foreign(world: World, payer: Payer, amount: int, metadata: str | None = None, **columns: str) -> str:
    """What another program writes; it changes the user's balance with it."""
    row_id = uuid.uuid4().hex
    world.change_auth(
        "INSERT INTO credit_transactions (id, user_id, amount, type, operation, resource_id, team_id, api_key_id,"
        " transaction_metadata, created_at)"
        " VALUES (%s, %s, %s, 'purchase', 'checkout', 'x', %s, %s, %s, now() AT TIME ZONE 'UTC')",
        row_id, payer.user_id, amount, columns.get("team_id"), columns.get("api_key_id"), metadata,
    )  # fmt: skip
    if not columns:
        world.change_auth("UPDATE user_credits SET credits = credits + %s WHERE user_id = %s", amount, payer.user_id)
    return row_id


# --- right ------------------------------------------------------------------------------------------------------------


def test_all_that_the_ledger_does_on_every_kind_of_pot_is_balanced(world: World) -> None:
    ledger, ann, bob = world.services.ledger, world.user(100), world.user(0)
    payers = [ann, team(world, bob), api_key(world, ann)[1]]
    for payer in payers:
        held, done, failed, given_back, never = (hold(payer) for _ in range(5))
        ledger.reserve([held, done, failed, given_back])
        ledger.close([settle(done, 1), settle(given_back, 3), Close(failed, 0, CloseState.RELEASED, "failed")])
        assert ledger.refund([given_back], reason="our fault") == 3
        ledger.void([never], reason="expired")
        ledger.grant(payer, 7, reason="sorry")
    foreign(world, ann, 20)

    audit = audited(world)
    assert audit.findings == ()
    assert (audit.pots, audit.gone, audit.holds, audit.open, audit.overdue) == (3, 0, 12, 3, 0)
    assert audit.not_opened == 2  # bob's own, and the team owner's
    t = audit.totals
    assert (t.reserved, t.charged, t.returned, t.held, t.granted) == (48, 3, 33, 12, 21)
    # ann's 100 have a row that explains them, written when she was added; the team's and the key's have none.
    assert (t.opening, t.other, t.available) == (200, 120, 300 + 20 + 21 - 3 - 12)


def test_a_real_run_leaves_a_balanced_ledger(world: World) -> None:
    payer = world.user(10)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": b"Alpha and omega.", "b.pdf": b"%PDF-1.7\n", "c.txt": b""})
    world.process(dataset)
    audit = audited(world)
    assert audit.findings == ()
    assert audit.totals.charged == 2
    assert audit.totals.held == 0


def test_the_figures_of_an_empty_ledger_are_zero(world: World) -> None:
    audit = audited(world)
    assert audit.balanced
    assert (audit.pots, audit.rows, audit.holds, audit.findings, audit.totals.available) == (0, 0, 0, (), 0)


def test_every_audit_beside_working_and_buying_customers_is_balanced(world: World) -> None:
    ledger, payers = world.services.ledger, [world.user(200) for _ in range(3)]
    for payer in payers:
        ledger.reserve([hold(payer)])
    stop = threading.Event()
    failed: list[BaseException] = []

    def work(payer: Payer) -> None:
        try:
            while not stop.is_set():
                holds = [hold(payer, 2) for _ in range(5)]
                ledger.reserve(holds)
                ledger.close([settle(h, n % 3) for n, h in enumerate(holds)])
                ledger.grant(payer, 5, reason="bought")
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            failed.append(error)

    threads = [threading.Thread(target=work, args=(payer,)) for payer in payers]
    for thread in threads:
        thread.start()
    audits = [audited(world) for _ in range(15)]
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [a.findings for a in audits] == [()] * 15
    assert audits[-1].rows > audits[0].rows


# --- wrong ------------------------------------------------------------------------------------------------------------


def test_a_close_that_was_changed_or_lost_is_named(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(100)
    h = hold(payer)
    ledger.reserve([h])
    ledger.close([settle(h, 1)])
    world.change_auth("UPDATE credit_transactions SET amount = 4 WHERE id = %s", h.close_id)
    audit = audited(world)
    assert {(f.severity, f.row_id) for f in audit.findings} == {
        (Severity.ERROR, h.close_id), (Severity.ERROR, payer.pot.opening_id),
    }  # fmt: skip
    (row,) = [f for f in audit.findings if f.row_id == h.close_id]
    assert (row.pot, row.subject) == (payer.pot.name, h.subject_id)
    world.change_auth("DELETE FROM credit_transactions WHERE id = %s", h.close_id)
    assert only(audited(world)).row_id == payer.pot.opening_id
    world.change_auth("DELETE FROM credit_transactions WHERE id = %s", h.id)
    assert "+1 from" not in only(audited(world)).problem  # 1 was charged, and nothing says for what
    assert "-1 from" in only(audited(world)).problem


def test_a_hold_that_was_made_long_ago_and_is_open_is_named(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(100)
    h, done = hold(payer), hold(payer)
    ledger.reserve([h, done])
    ledger.close([settle(done, 1)])
    assert audited(world).balanced
    world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '61 minutes'")
    audit = audited(world)
    assert (only(audit).row_id, only(audit).subject, audit.overdue) == (h.id, h.subject_id, 1)
    assert audited(world, overdue=2 * HOUR).balanced


def test_a_hold_that_a_living_worker_has_in_hand_is_not_overdue_however_old_it_is(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    held = desk.hold(claim)
    desk.an_hour_passes()
    assert only(audited(world, timedelta(minutes=1))).row_id == hold_of(held).id
    world.change("UPDATE pipeline.documents SET lease_until = now() + interval '1 minute'")
    audit = audited(world, timedelta(minutes=1))
    assert (audit.open, audit.overdue, audit.findings) == (1, 0, ())


def test_a_hold_that_was_closed_while_the_audit_read_is_not_overdue(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(100)
    closed, left = hold(payer), hold(payer)
    ledger.reserve([closed, left])

    def and_closes_one(_: object) -> set[str]:
        ledger.close([settle(closed, 1)])
        return set()

    audit = run_audit(ledger.engine, overdue=-HOUR, in_hand=and_closes_one)
    assert (only(audit).row_id, audit.overdue) == (left.id, 1)


def test_a_balance_that_nobody_explains_is_an_error_until_another_program_may_have_done_it(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(100)
    foreign(world, payer, 5)
    ledger.reserve([hold(payer)])
    assert audited(world).findings == ()
    world.change_auth("UPDATE user_credits SET credits = credits + 3 WHERE user_id = %s", payer.user_id)
    finding = only(audited(world))
    assert (finding.severity, finding.pot) == (Severity.ERROR, payer.pot.name)
    assert "+3 from" in finding.problem
    foreign(world, payer, 5)
    finding = only(audited(world))
    assert finding.severity is Severity.WARNING
    assert "another program" in finding.problem


def test_deleted_members_of_a_team_explain_its_drift(world: World) -> None:
    ann, bob = world.user(0), world.user(0)
    team(world, ann, bob)
    for member in (ann, bob):
        dataset = world.dataset(member)
        world.upload(dataset, {"a.txt": b"Alpha and omega."})
        world.extract(dataset)
    assert audited(world).findings == ()
    world.change_auth("DELETE FROM users WHERE id = %s", bob.user_id)
    finding = only(audited(world))
    assert finding.severity is Severity.WARNING
    assert "1 of its users were deleted" in finding.problem
    alone = only(run_audit(world.services.ledger.engine, overdue=HOUR))
    assert alone.severity is Severity.ERROR  # fltr_auth alone can't know of him


def test_a_deleted_team_whose_rows_of_another_program_now_count_as_their_users_is_no_error(world: World) -> None:
    ledger, ann, bob = world.services.ledger, world.user(50), world.user(0)
    payer = team(world, bob)
    foreign(world, ann, -5, team_id=payer.pot.id)
    ledger.reserve([hold(ann), hold(payer)])
    world.change_auth("UPDATE user_credits SET team_id = NULL")
    world.change_auth("DELETE FROM teams WHERE id = %s", payer.pot.id)
    audit = audited(world)
    assert (only(audit).severity, only(audit).pot, audit.gone) == (Severity.WARNING, ann.pot.name, 1)


def test_a_deleted_user_leaves_nothing_to_explain(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(100)
    ledger.reserve([hold(payer)])
    world.change_auth("DELETE FROM users WHERE id = %s", payer.user_id)
    audit = audited(world)
    assert (audit.findings, audit.pots, audit.gone, audit.rows) == ((), 0, 0, 0)


def test_a_pot_that_was_gone_when_a_hold_ended_and_came_back_is_a_warning(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(100)
    h = hold(payer)
    ledger.reserve([h])
    world.change_auth("DELETE FROM user_credits WHERE user_id = %s", payer.user_id)
    assert ledger.close([settle(h, 1)])[h.id].state is CloseState.POT_GONE
    assert (audited(world).findings, audited(world).gone) == ((), 1)
    world.change_auth("INSERT INTO user_credits (user_id, credits) VALUES (%s, 5)", payer.user_id)
    finding = only(audited(world))
    assert (finding.severity, finding.pot) == (Severity.WARNING, payer.pot.name)
    assert "made again" in finding.problem


# --- whatever else lies in the table ----------------------------------------------------------------------------------

STRANGE = [
    "null", '"a string"', "[1]", "{}", '{"kind": ["close"], "hold_id": {}}', '{"kind": "close", "hold_id": "nothing"}',
    '{"pot": "flowers", "kind": "refund"}', '"{\\"kind\\": \\"reserve\\", \\"version\\": 1, \\"pot\\": \\"user:x\\"}"',
    '{"n": 1e999}', "1" * 5000, "[" * 3000 + "]" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "jsonb", "text"])
def test_metadata_of_any_type_that_others_wrote_does_not_stop_it(world: World, kind: str) -> None:
    world.change_auth(
        f"ALTER TABLE credit_transactions ALTER COLUMN transaction_metadata"
        f" TYPE {kind} USING transaction_metadata::text::{kind}"
    )
    ledger, payer = world.services.ledger, world.user(100)
    h = hold(payer)
    ledger.reserve([h])
    ledger.close([settle(h, 1)])
    written = [m for m in STRANGE if not (kind == "jsonb" and "999" in m)]
    written += ["", "no JSON", "{", '{"kind": "close", "hold_id": "', "\\u0000"] if kind == "text" else []
    others = [foreign(world, payer, 1, m) for m in written] + [foreign(world, payer, -1)]
    audit = audited(world)
    assert audit.rows == 4 + len(others)  # and the user's own first one
    assert audit.totals.other == 100 + len(written) - 1
    assert {f.severity for f in audit.findings} <= {Severity.WARNING}
    # One names a pot of its own: its row moves what is no pot, and so the balance differs from the rows by 1.
    assert "+1 from" in only(audit).problem


def test_a_row_of_ours_that_lost_its_metadata_is_named(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(100)
    h = hold(payer)
    ledger.reserve([h])
    ledger.close([settle(h, 1)])
    world.change_auth("UPDATE credit_transactions SET transaction_metadata = NULL WHERE id = %s", h.id)
    finding = only(audited(world))
    assert (finding.row_id, finding.problem) == (h.id, "its metadata can't be read")


def test_ids_may_be_uuids_and_times_may_have_a_zone(world: World) -> None:
    world.change_auth("ALTER TABLE credit_transactions ALTER COLUMN id TYPE uuid USING id::uuid")
    world.change_auth("ALTER TABLE credit_transactions ALTER COLUMN created_at TYPE timestamptz")
    ledger, payer = world.services.ledger, world.user(100)
    ledger.reserve([hold(payer)])
    assert audited(world).findings == ()
    assert audited(world, overdue=-HOUR).overdue == 1


def test_an_api_key_never_leaves_the_database(world: World) -> None:
    ledger, owner = world.services.ledger, world.user(0)
    key, payer = api_key(world, owner)
    ledger.reserve([hold(payer)])
    named = foreign(world, owner, -3, api_key_id=key)  # as an application may name it: by itself
    world.change_auth("UPDATE api_key_credits SET credits = credits - 3")
    with scan.snapshot(ledger.engine) as tx:
        rows = [row for together in scan.by_hold(tx) for row in together]
        pots = scan.balances(tx)
    assert {row.pot for row in rows if row.row.id == named} == {payer.pot.name}
    assert pots[payer.pot.name] == 93
    assert key not in f"{rows}{pots}{audited(world)}"
    assert audited(world).findings == ()


# --- the scan ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_sees_nothing_that_comes_later_and_changes_nothing(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(100)
    with scan.snapshot(ledger.engine) as tx:
        assert scan.balances(tx) == {payer.pot.name: 100}
        ledger.grant(payer, 5, reason="x")
        assert scan.balances(tx) == {payer.pot.name: 100}
        assert [row.row.amount for together in scan.by_hold(tx) for row in together] == [100]
        assert scan.openings(tx) == []
    with pytest.raises(StoreUnavailable, match="read-only"), scan.snapshot(ledger.engine) as tx:
        tx.execute(text("UPDATE user_credits SET credits = 0"))
    assert available(world, payer) == 105


def test_memory_does_not_grow_with_the_rows(world: World) -> None:
    payer = world.user(0)

    def peak(rows: int) -> int:
        world.change_auth(
            "INSERT INTO credit_transactions (id, user_id, amount, type, operation, transaction_metadata)"
            " SELECT gen_random_uuid(), %s, 1, 'purchase', 'checkout', json_build_object('note', repeat('x', 500))"
            " FROM generate_series(1, %s)",
            payer.user_id, rows,
        )  # fmt: skip
        tracemalloc.start()
        assert audited(world).totals.other >= rows
        (_, most) = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small = peak(4_000)
    assert peak(20_000) < 2 * small


def test_what_all_members_of_a_team_hold_counts_as_held_by_it(world: World) -> None:
    ledger, ann, bob = world.services.ledger, world.user(100), world.user(0)
    key = api_key(world, ann)[1]
    ledger.reserve([hold(ann, 1), hold(key, 20)])
    payer = team(world, ann, bob)
    other = ledger.payer(bob.user_id)
    assert other is not None
    done = hold(payer, 50)
    ledger.reserve([hold(payer, 2), hold(other, 3), done])
    ledger.close([settle(done, 0)])
    foreign(world, ann, -7)
    with scan.snapshot(ledger.engine) as tx:
        held = {pot: scan.held(tx, pot.kind, pot.id) for pot in (ann.pot, payer.pot, key.pot, Pot("user", "nobody"))}
    assert list(held.values()) == [1, 5, 20, 0]
