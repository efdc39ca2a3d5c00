"""The asset check `ledger_balanced`, as the daily job runs it."""

import dagster as dg

from fltr_pipeline.credits.holds import Close, CloseState, Hold, Payer
from fltr_pipeline.definitions import build_defs
from fltr_pipeline.models import Op
from fltr_pipeline_tests.world import World


def checked(instance: dg.DagsterInstance) -> dg.AssetCheckEvaluation:
    result = build_defs().resolve_job_def("verify").execute_in_process(instance=instance)
    assert result.success
    return next(c for c in result.get_asset_check_evaluations() if c.check_name == "ledger_balanced")


def settled(world: World, payer: Payer) -> Hold:
    """A hold of 5 credits of which 3 were charged."""
    hold = Hold("document", Op.DOCUMENT_EMBED, 1, 1, 5, payer, None, "run", "1", 1)
    world.services.ledger.reserve([hold])
    world.services.ledger.close([Close(hold, 3, CloseState.SETTLED, "done")])
    return hold


def findings(check: dg.AssetCheckEvaluation) -> list[dict[str, object]]:
    table = check.metadata["findings"]
    assert isinstance(table, dg.TableMetadataValue)
    return [dict(record.data) for record in table.records]


def test_a_balanced_ledger_passes_with_its_figures(world: World, instance: dg.DagsterInstance) -> None:
    settled(world, world.user(credits=20))
    check = checked(instance)
    assert check.passed
    assert check.asset_key == dg.AssetKey(["fltr_auth", "credit_transactions"])
    figures = {name: value.value for name, value in check.metadata.items() if name != "findings"}
    assert figures == {
        "pots": 1, "not_opened": 0, "gone": 0, "rows": 4, "holds": 1, "open": 0, "overdue": 0, "errors": 0,
        "warnings": 0, "available": 17, "opening": 0, "reserved": 5, "charged": 3, "returned": 2, "held": 0,
        "granted": 0, "other": 20,
    }  # fmt: skip
    assert findings(check) == []


def test_a_broken_row_is_an_error_and_stands_in_the_table(world: World, instance: dg.DagsterInstance) -> None:
    payer = world.user(credits=20)
    hold = settled(world, payer)
    world.change_auth("UPDATE credit_transactions SET type = 'bonus' WHERE id = %s", hold.close_id)
    check = checked(instance)
    assert not check.passed
    assert check.severity is dg.AssetCheckSeverity.ERROR
    (finding,) = findings(check)
    assert (finding["severity"], finding["row"], finding["pot"], finding["subject"]) == (
        "error", hold.close_id, payer.pot.name, "document",
    )  # fmt: skip
    assert check.metadata["errors"].value == 1


def test_what_another_program_explains_is_a_warning(world: World, instance: dg.DagsterInstance) -> None:
    payer = world.user(credits=20)
    settled(world, payer)
    world.change_auth(
        "INSERT INTO credit_transactions (id, user_id, amount, type, operation, created_at)"
        " VALUES ('theirs', %s, 7, 'purchase', 'checkout', now() AT TIME ZONE 'UTC')",
        payer.user_id,
    )
    check = checked(instance)
    assert not check.passed
    assert check.severity is dg.AssetCheckSeverity.WARN
    assert [f["severity"] for f in findings(check)] == ["warning"]
