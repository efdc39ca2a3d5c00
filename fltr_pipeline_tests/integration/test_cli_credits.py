"""`fltr-pipeline credits` against real stores: what it prints, and with which exit code."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fltr_pipeline.credits.holds import Close, CloseState, Hold, Payer, key_digest
from fltr_pipeline.models import Op
from fltr_pipeline.settings import STACK_FILE
from fltr_pipeline.stores.schema.indexes import HELPFUL
from fltr_pipeline_tests.command_line import fltr_pipeline, fltr_pipeline_process
from fltr_pipeline_tests.world import World

TEXT = b"The treaty of Westphalia ended the thirty years war in 1648."


def email(world: World, payer: Payer) -> str:
    return str(world.auth_rows("SELECT email FROM users WHERE id = %s", payer.user_id)[0][0])


def hold(payer: Payer, amount: int, subject: str = "under-way", run: str | None = "run-1") -> Hold:
    return Hold(
        subject_id=subject, op=Op.DOCUMENT_EMBED, generation=1, sequence=1, amount=amount, payer=payer, job_id=None,
        run_id=run, price_version="1", unit_price=1,
    )  # fmt: skip


def settle(h: Hold, charged: int) -> Close:
    return Close(h, charged, CloseState.SETTLED, "done")


def team_of(world: World, *members: Payer) -> Payer:
    """A team with 70 credits pays for these users from now on: the payer of the first."""
    world.change_auth("INSERT INTO teams (id, name, credits, owner_id, created_at, updated_at)"
                      " VALUES ('team-1', 'ours', 70, %s, now(), now())", members[0].user_id)  # fmt: skip
    for member in members:
        world.change_auth("UPDATE user_credits SET team_id = 'team-1' WHERE user_id = %s", member.user_id)
    return payer_of(world, members[0])


def payer_of(world: World, payer: Payer) -> Payer:
    found = world.services.ledger.payer(payer.user_id)
    assert found is not None
    return found


def test_a_grant_raises_the_balance_and_keeps_its_reason(world: World) -> None:
    payer = world.user(credits=10)
    who = email(world, payer)
    assert fltr_pipeline("credits", "grant", who, 32, "--reason", "goodwill").stdout == (
        f"32 credits granted to user {payer.user_id}; 42 available\n"
    )
    assert fltr_pipeline("credits", "grant", who, 8, "--json").document["available"] == 50
    reasons = world.auth_rows(
        "SELECT transaction_metadata ->> 'reason' FROM credit_transactions WHERE type = 'bonus' AND amount IN (8, 32)"
        " ORDER BY amount DESC"
    )
    assert [r[0] for r in reasons] == ["goodwill", "granted by an operator"]


def test_the_balance_shows_what_is_held_apart(world: World) -> None:
    payer = world.user(credits=10)
    world.services.ledger.reserve([hold(payer, 3)])
    balance = fltr_pipeline_process("credits", "balance", email(world, payer).upper(), "--json")
    assert balance.stderr == ""
    assert (balance.document["available"], balance.document["held"]) == (7, 3)
    assert balance.document["pot"] == {"kind": "user", "id": payer.user_id}
    shown = fltr_pipeline("credits", "balance", email(world, payer)).stdout
    assert shown == f"7 credits available to user {payer.user_id}, and 3 held for work under way\n"


def test_a_team_pays_for_its_members_and_holds_for_all_of_them(world: World) -> None:
    ann, bob = world.user(credits=5), world.user(credits=5)
    world.services.ledger.reserve([hold(ann, 1, "before the team")])
    team = team_of(world, ann, bob)
    granted = fltr_pipeline("credits", "grant", email(world, ann), 30)
    assert granted.stdout == "30 credits granted to team team-1; 100 available\n"
    done = hold(team, 50, "done")
    world.services.ledger.reserve([hold(team, 2, "of ann"), hold(payer_of(world, bob), 3, "of bob"), done])
    world.services.ledger.close([settle(done, 10)])
    shown = fltr_pipeline("credits", "balance", email(world, ann)).stdout
    assert shown == "85 credits available to team team-1, and 5 held for work under way\n"


def test_the_balance_has_the_users_api_keys_with_what_their_limits_leave_and_never_a_key(world: World) -> None:
    payer, other = world.user(credits=10), world.user(credits=10)
    keys = {"sk-limited-0001": (other, 40, None, None), "sk-limited-0002": (payer, 50, 20, 30),
            "sk-limited-0003": (payer, 60, None, None)}  # fmt: skip
    for key, (owner, credits, daily, monthly) in keys.items():
        world.change_auth(
            "INSERT INTO api_key_credits (api_key, user_id, credits, daily_limit, monthly_limit)"
            " VALUES (%s, %s, %s, %s, %s)", key, owner.user_id, credits, daily, monthly,
        )  # fmt: skip
    digests = {key: key_digest(key) for key in keys}
    pays = world.services.ledger.payers(payer.user_id, [digests["sk-limited-0002"]])[digests["sk-limited-0002"]]
    held, done = hold(pays, 4, "a"), hold(pays, 9, "b")
    world.services.ledger.reserve([held, done])
    world.services.ledger.close([settle(done, 3)])

    balance = fltr_pipeline("credits", "balance", email(world, payer), "--json")
    found = {key["digest"]: key for key in balance.document["api_keys"]}
    assert found == {
        digests["sk-limited-0002"]: {
            "digest": digests["sk-limited-0002"], "available": 43, "held": 4, "daily_limit": 20, "daily_left": 13,
            "monthly_limit": 30, "monthly_left": 23,
        },
        digests["sk-limited-0003"]: {
            "digest": digests["sk-limited-0003"], "available": 60, "held": 0, "daily_limit": None, "daily_left": None,
            "monthly_limit": None, "monthly_left": None,
        },
    }  # fmt: skip
    shown = fltr_pipeline("credits", "balance", email(world, payer)).stdout
    assert set(shown.splitlines()) == {
        f"10 credits available to user {payer.user_id}, and 0 held for work under way",
        f"API key {digests['sk-limited-0002'][:12]}…: 43 available, and 4 held; 13 of 20 left today, "
        "23 of 30 left this month",
        f"API key {digests['sk-limited-0003'][:12]}…: 60 available, and 0 held; no limit",
    }
    assert "sk-" not in balance.stdout + shown


def test_the_statement_has_totals_and_a_line_per_hold(world: World) -> None:
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.upload(dataset, {"[treaty].txt": TEXT, "broken.pdf": b"%PDF-1.7\n"})
    world.process(dataset)
    world.services.ledger.reserve([hold(payer, 2)])

    statement = fltr_pipeline("credits", "statement", email(world, payer), "--json").document
    totals = ("reserved", "charged", "returned", "held", "granted", "available")
    assert {name: statement[name] for name in totals} == {
        "reserved": 5, "charged": 2, "returned": 1, "held": 2, "granted": 10, "available": 6,
    }  # fmt: skip
    lines = {(e["operation"], e["resource"], e["state"]): e for e in statement["entries"]}
    assert set(lines) == {
        ("grant", None, "granted"),
        ("document_extract", "[treaty].txt", "charged"),
        ("document_extract", "broken.pdf", "returned"),
        ("document_embed", "[treaty].txt", "charged"),
        ("document_embed", None, "held"),
    }
    assert lines["document_extract", "broken.pdf", "returned"]["returned"] == 1

    shown = fltr_pipeline("credits", "statement", email(world, payer)).stdout
    assert "[treaty].txt" in shown
    assert f"6 credits available to user {payer.user_id}, and 2 held" in shown
    short = fltr_pipeline("credits", "statement", email(world, payer), "--limit", 1)
    assert "under-way" in short.stdout
    assert "4 earlier lines" in short.stdout
    last = fltr_pipeline("credits", "statement", email(world, payer), "--limit", 1, "--json").document
    assert ([e["state"] for e in last["entries"]], last["entries_total"], last["charged"]) == (["held"], 5, 2)


def test_the_statement_is_netted_by_document_op_or_run(world: World) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {"treaty.txt": TEXT, "broken.pdf": b"%PDF-1.7\n"})
    world.process(dataset)
    paid, given_back = replace(hold(payer, 5, ids["treaty.txt"], "run-2"), sequence=2), hold(payer, 4, "gone", "run-2")
    world.services.ledger.reserve([paid, given_back, hold(payer, 2, run=None)])
    world.services.ledger.close([settle(paid, 3), settle(given_back, 4)])
    world.services.ledger.refund([given_back], reason="our fault")

    def lines(by: str) -> dict[str, tuple[int, ...]]:
        found = fltr_pipeline("credits", "statement", email(world, payer), "--by", by, "--json").document
        assert found["by"] == by
        assert found["entries_total"] == len(found["entries"])
        numbers = ("lines", "reserved", "charged", "returned", "held", "granted")
        return {str(e.get("resource") or e["key"]): tuple(e[n] for n in numbers) for e in found["entries"]}

    assert lines("document") == {
        "None": (1, 0, 0, 0, 0, 20), "treaty.txt": (3, 7, 5, 2, 0, 0), "broken.pdf": (1, 1, 0, 1, 0, 0),
        "gone": (1, 4, 0, 4, 0, 0), "under-way": (1, 2, 0, 0, 2, 0),
    }  # fmt: skip
    assert lines("op") == {
        "grant": (1, 0, 0, 0, 0, 20), "document_extract": (2, 2, 1, 1, 0, 0), "document_embed": (4, 12, 4, 6, 2, 0),
    }  # fmt: skip
    by_run = lines("run")
    assert by_run.pop("run-2") == (2, 9, 3, 6, 0, 0)
    assert by_run.pop("None") == (2, 2, 0, 0, 2, 20)
    assert list(by_run.values()) == [(3, 3, 2, 1, 0, 0)]  # of the worker that processed the dataset

    shown = fltr_pipeline("credits", "statement", email(world, payer), "--by", "document", "--limit", 4).stdout
    assert {"broken.pdf", "treaty.txt", "gone", "under-way"} <= set(shown.split())
    assert "1 earlier lines" in shown
    assert "and 2 held" in shown


def test_lines_of_other_applications_are_shown_as_they_are(world: World) -> None:
    payer = world.user(credits=0)
    world.change_auth("INSERT INTO credit_transactions (id, user_id, amount, type, operation, resource_id, created_at)"
                      " VALUES ('t1', %s, -4, 'usage', 'mcp_query', 'no uuid', now())", payer.user_id)  # fmt: skip
    statement = fltr_pipeline("credits", "statement", email(world, payer), "--json").document
    assert [(e["operation"], e["resource_id"], e["charged"]) for e in statement["entries"]] == [
        ("mcp_query", "no uuid", 4)
    ]


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz"])
def test_times_are_told_as_utc_whatever_the_owners_column_is(world: World, kind: str) -> None:
    world.change_auth(f"ALTER TABLE credit_transactions ALTER COLUMN created_at TYPE {kind}")
    who = email(world, world.user(credits=3))
    (entry,) = fltr_pipeline("credits", "statement", who, "--json").document["entries"]
    (group,) = fltr_pipeline("credits", "statement", who, "--by", "op", "--json").document["entries"]
    assert group["first"] == group["last"] == entry["at"]
    assert datetime.fromisoformat(entry["at"]).tzinfo is UTC
    assert abs(datetime.now(UTC) - datetime.fromisoformat(entry["at"])) < timedelta(minutes=10)


def test_an_empty_statement_is_one(world: World) -> None:
    statement = fltr_pipeline("credits", "statement", email(world, world.user(credits=0)))
    assert statement.exit_code == 0
    assert "0 credits available" in statement.stdout


def test_an_unknown_user_of_a_configured_fltr_auth_must_sign_up(world: World) -> None:
    result = fltr_pipeline("credits", "balance", "nobody@example.org")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "sign up" in result.words


def test_an_unknown_user_of_the_embedded_stack_can_be_added(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"FLTR_{name.upper()}": name for name in
             ("database_url", "auth_database_url", "dagster_database_url", "milvus_uri", "blob_url")}  # fmt: skip
    endpoints = {names[variable]: value for variable, value in world.environment.items()}
    (tmp_path / STACK_FILE).write_text(json.dumps({"endpoints": endpoints}))
    monkeypatch.setenv("FLTR_HOME", str(tmp_path))
    for variable in names:
        monkeypatch.delenv(variable)
    result = fltr_pipeline("credits", "grant", "nobody@example.org", 5, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    error = json.loads(result.stderr)["error"]
    assert error["type"] == "NotFound"
    assert "`fltr-pipeline db add-user nobody@example.org --credits 100`" in error["message"]


def test_more_than_the_cap_is_refused(world: World) -> None:
    payer = world.user(credits=1)
    result = fltr_pipeline("credits", "grant", email(world, payer), 1_000_001)
    assert result.exit_code == 1
    assert "between 1 and 1000000" in result.words
    assert world.statement(payer).available == 1


def test_more_than_a_balance_can_hold_is_refused(world: World) -> None:
    payer = world.user(credits=2**31 - 1)
    result = fltr_pipeline("credits", "grant", email(world, payer), 1)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "can hold" in result.words
    assert world.statement(payer).granted == 2**31 - 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("grant", "ada@example.org", "0"),
        ("grant", "ada@example.org", "much"),
        ("grant", "ada@example.org"),
        ("balance",),
        ("statement", "ada@example.org", "--limit", "0"),
        ("statement", "ada@example.org", "--by", "colour"),
        ("audit", "--overdue", "-1"),
    ],
)
def test_wrong_usage_exits_2(world: World, arguments: tuple[str, ...]) -> None:
    assert fltr_pipeline("credits", *arguments).exit_code == 2


# --- the audit --------------------------------------------------------------------------------------------------------


def test_the_audit_of_a_balanced_ledger_has_its_figures_and_exits_0(world: World) -> None:
    payer = world.user(credits=20)
    done = hold(payer, 5, "done")
    world.services.ledger.reserve([hold(payer, 2), done])
    world.services.ledger.close([settle(done, 3)])
    audit = fltr_pipeline("credits", "audit", "--json").document
    assert (audit["balanced"], audit["errors"], audit["warnings"], audit["findings"]) == (True, 0, 0, [])
    assert {name: audit[name] for name in ("pots", "not_opened", "gone", "rows", "holds", "open", "overdue")} == {
        "pots": 1, "not_opened": 0, "gone": 0, "rows": 5, "holds": 2, "open": 1, "overdue": 0,
    }  # fmt: skip
    assert audit["totals"] == {
        "available": 15, "opening": 0, "reserved": 7, "charged": 3, "returned": 2, "held": 2, "granted": 0, "other": 20,
    }  # fmt: skip
    shown = fltr_pipeline("credits", "audit")
    assert shown.exit_code == 0
    assert "5 rows, 2 holds: 1 open, 0 overdue; 1 pot checked, 0 not yet opened, 0 gone" in shown.stdout
    assert "balanced: 0 errors, 0 warnings" in shown.stdout
    assert "charged 3" in shown.words


def test_the_audit_tells_how_much_it_does_not_list(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fltr_pipeline.credits.audit.FINDINGS_KEPT", 1)
    payer = world.user(credits=20)
    world.services.ledger.reserve([hold(payer, 2, subject) for subject in ("one", "two", "three")])
    world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '1 hour' WHERE amount < 0")
    shown = fltr_pipeline("credits", "audit", "--overdue", "30")
    assert "not balanced: 3 errors, 0 warnings; 2 more than are listed" in shown.words


def test_the_audit_names_the_row_that_is_wrong_and_exits_1(world: World) -> None:
    payer = world.user(credits=20)
    h = hold(payer, 5, "[book]")
    world.services.ledger.reserve([h])
    world.services.ledger.close([settle(h, 3)])
    world.change_auth("UPDATE credit_transactions SET amount = 3 WHERE id = %s", h.close_id)
    world.change_auth("UPDATE user_credits SET credits = credits + 1")
    shown = fltr_pipeline("credits", "audit")
    assert shown.exit_code == 1
    (line,) = [line for line in shown.stdout.splitlines() if h.close_id in line]
    assert f"user:{payer.user_id}" in line
    assert "[book]" in line
    assert "it gives back 3, but 3 was charged of 5 reserved" in line
    assert "not balanced: 1 error, 0 warnings" in shown.stdout
    as_json = fltr_pipeline("credits", "audit", "--json")
    assert as_json.exit_code == 1
    (finding,) = json.loads(as_json.stdout)["findings"]
    assert (finding["severity"], finding["row_id"], finding["subject"]) == ("error", h.close_id, "[book]")


def test_a_warning_does_not_fail_the_audit(world: World) -> None:
    payer = world.user(credits=20)
    world.services.ledger.reserve([hold(payer, 5)])
    world.change_auth("INSERT INTO credit_transactions (id, user_id, amount, type, operation, created_at)"
                      " VALUES ('t1', %s, 5, 'purchase', 'checkout', now() AT TIME ZONE 'UTC')",
                      payer.user_id)  # fmt: skip
    shown = fltr_pipeline("credits", "audit")
    assert shown.exit_code == 0
    assert "another program wrote or moved rows of it" in shown.stdout
    assert "balanced: 0 errors, 1 warning" in shown.stdout


def test_how_long_a_hold_may_be_open_is_said_in_minutes(world: World) -> None:
    world.services.ledger.reserve([hold(world.user(credits=20), 5)])
    world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '10 minutes'")
    assert fltr_pipeline("credits", "audit").exit_code == 0
    late = fltr_pipeline("credits", "audit", "--overdue", 9)
    assert late.exit_code == 1
    assert "`fltr-pipeline reconcile`" in late.stdout


def test_the_audit_ends_with_the_indexes_that_would_help(world: World) -> None:
    lines = fltr_pipeline("credits", "audit").stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("Indexes that fltr_auth lacks"))
    assert [line.split("  // ")[0].strip() for line in lines[start + 1 :]] == [
        f"{index.table}: {index.drizzle}" for index in HELPFUL
    ]
    found = fltr_pipeline("credits", "audit", "--json").document["missing_indexes"]
    assert [index["drizzle"] for index in found] == [index.drizzle for index in HELPFUL]
    for index in HELPFUL:
        world.change_auth(f"CREATE INDEX ON {index.table} ({index.of})")
    assert "Indexes" not in fltr_pipeline("credits", "audit").stdout
    assert fltr_pipeline("credits", "audit", "--json").document["missing_indexes"] == []
