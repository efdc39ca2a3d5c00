"""`fltr-pipeline credits` against real stores: what it prints, and with which exit code."""

import json
from pathlib import Path

import pytest

from fltr_pipeline.credits.holds import Hold, Payer
from fltr_pipeline.models import Op
from fltr_pipeline.settings import STACK_FILE
from fltr_pipeline_tests.command_line import fltr_pipeline, fltr_pipeline_process
from fltr_pipeline_tests.world import World

TEXT = b"The treaty of Westphalia ended the thirty years war in 1648."


def email(world: World, payer: Payer) -> str:
    return str(world.auth_rows("SELECT email FROM users WHERE id = %s", payer.user_id)[0][0])


def hold(payer: Payer, amount: int) -> Hold:
    return Hold(
        subject_id="under-way", op=Op.DOCUMENT_EMBED, generation=1, sequence=1, amount=amount, payer=payer, job_id=None,
        price_version="1", unit_price=1,
    )  # fmt: skip


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


def test_a_team_pays_for_its_members(world: World) -> None:
    payer = world.user(credits=5)
    world.change_auth("INSERT INTO teams (id, name, credits, owner_id, created_at, updated_at)"
                      " VALUES ('team-1', 'ours', 70, %s, now(), now())", payer.user_id)  # fmt: skip
    world.change_auth("UPDATE user_credits SET team_id = 'team-1' WHERE user_id = %s", payer.user_id)
    granted = fltr_pipeline("credits", "grant", email(world, payer), 30)
    assert granted.stdout == "30 credits granted to team team-1; 100 available\n"


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


def test_lines_of_other_applications_are_shown_as_they_are(world: World) -> None:
    payer = world.user(credits=0)
    world.change_auth("INSERT INTO credit_transactions (id, user_id, amount, type, operation, resource_id, created_at)"
                      " VALUES ('t1', %s, -4, 'usage', 'mcp_query', 'no uuid', now())", payer.user_id)  # fmt: skip
    statement = fltr_pipeline("credits", "statement", email(world, payer), "--json").document
    assert [(e["operation"], e["resource_id"], e["charged"]) for e in statement["entries"]] == [
        ("mcp_query", "no uuid", 4)
    ]


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
        ("audit",),
    ],
)
def test_wrong_usage_exits_2(world: World, arguments: tuple[str, ...]) -> None:
    assert fltr_pipeline("credits", *arguments).exit_code == 2
