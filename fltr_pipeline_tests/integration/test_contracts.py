"""`docs/contracts.md` on the ledger: its SQL, run on a real ledger, says what the pipeline itself says."""

import re
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from fltr_pipeline.credits import entries
from fltr_pipeline.credits.holds import Close, CloseState, Hold, Payer
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth import scan
from fltr_pipeline.stores.schema.indexes import HELPFUL
from fltr_pipeline_tests.world import World

PAGE = (Path(__file__).parents[2] / "docs/contracts.md").read_text()
SECTION = PAGE.split("\n## Reading the ledger\n", 1)[1]
TOTALS, LINES, HELD_BY_TEAM = re.findall(r"^```sql\n(.*?)^```", SECTION, re.M | re.S)


@pytest.fixture(params=["json", "jsonb"])
def told(request: pytest.FixtureRequest, world: World) -> World:
    """A world whose application chose that type for the metadata."""
    world.change_auth(
        f"ALTER TABLE credit_transactions ALTER COLUMN transaction_metadata"
        f" TYPE {request.param} USING transaction_metadata::text::{request.param}"
    )
    return world


def ask(world: World, sql: str, **parameters: object) -> list[dict[str, Any]]:
    """As the application would, with its own placeholders."""
    query = re.sub(r"(?<!:):([a-z_]+)", r"%(\1)s", sql)
    with psycopg.connect(world.auth_admin, row_factory=dict_row) as connection:
        return connection.execute(query.encode(), parameters).fetchall()


def hold(payer: Payer, amount: int) -> Hold:
    return Hold(uuid.uuid4().hex, Op.DOCUMENT_EMBED, 1, 1, amount, payer, None, "run", "1", 1)


def work(world: World, payer: Payer) -> None:
    """One of each: open, settled, settled whole, released, given back, void; and what the application does itself."""
    ledger = world.services.ledger
    under_way, done, whole, failed, lost = (hold(payer, n) for n in (3, 5, 6, 7, 8))
    ledger.reserve([under_way, done, whole, failed, lost])
    ledger.close([Close(h, n, CloseState.SETTLED, "done") for h, n in ((done, 2), (whole, 6), (lost, 8))])
    ledger.close([Close(failed, 0, CloseState.RELEASED, "failed")])
    ledger.refund([lost], reason="our fault")
    ledger.void([hold(payer, 9)], reason="expired")
    ledger.grant(payer, 4, reason="sorry")
    for amount, kind, metadata in ((-2, "usage", None), (50, "purchase", '{"stripe": 1}'), (-1, "usage", '"words"')):
        world.change_auth(
            "INSERT INTO credit_transactions (id, user_id, amount, type, operation, transaction_metadata)"
            " VALUES (%s, %s, %s, %s, 'document_upload', %s)",
            uuid.uuid4().hex, payer.user_id, amount, kind, metadata,
        )  # fmt: skip


def test_the_sql_of_a_usage_page_says_what_the_statement_says(told: World) -> None:
    payer, other = told.user(100), told.user(100)
    for user in (payer, other):
        work(told, user)
    statement = told.statement(payer)
    (totals,) = ask(told, TOTALS, user_id=payer.user_id)
    assert totals == {"spent": statement.charged, "held": statement.held} == {"spent": 2 + 6 + 2 + 1, "held": 3}
    (nobody,) = ask(told, TOTALS, user_id=told.user(0).user_id)
    assert nobody == {"spent": 0, "held": 0}

    lines = ask(told, LINES, user_id=payer.user_id, lines=100)
    expected = {
        (e.at, e.operation, e.resource_id, e.charged + e.held, e.held > 0) for e in statement.entries if not e.granted
    }
    assert {(r["at"], r["operation"], r["resource_id"], r["credits"], r["held"]) for r in lines} == expected
    assert len(lines) == 7
    assert [r["at"] for r in lines] == sorted((r["at"] for r in lines), reverse=True)
    assert ask(told, LINES, user_id=payer.user_id, lines=2) == lines[:2]


def test_the_sql_of_a_teams_balance_tells_what_all_members_hold(told: World) -> None:
    ann, bob = told.user(0), told.user(0)
    told.change_auth("INSERT INTO teams (id, name, credits, owner_id) VALUES ('red', 'ours', 500, %s)", ann.user_id)
    told.change_auth("UPDATE user_credits SET team_id = 'red'")
    for member in (ann, bob):
        payer = told.services.ledger.payer(member.user_id)
        assert payer is not None
        work(told, payer)
    assert ask(told, HELD_BY_TEAM, team_id="red") == [{"held": 6}]
    with scan.snapshot(told.services.ledger.engine) as tx:
        assert scan.held(tx, "team", "red") == 6


def test_every_kind_of_row_is_on_the_page() -> None:
    told = set(re.findall(r"^\| `(\w+)` \| `(?:usage|refund|bonus)`", SECTION, re.M))
    source = Path(entries.__file__).read_text()
    assert told == set(re.findall(r'"(reserve|close|void|refund|grant|opening)"', source))
    assert len(told) == 6


def test_the_helpful_indexes_are_on_the_page_as_the_audit_prints_them() -> None:
    for index in HELPFUL:
        mark = "``" if "`" in index.drizzle else "`"
        assert f"| {mark}{index.drizzle}{mark} of `{index.table}` | {index.serves} |" in SECTION
    assert SECTION.count("index(") == len(HELPFUL)
