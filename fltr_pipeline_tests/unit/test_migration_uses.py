"""Which sources of triggers break once `users` has fewer columns, as far as their text tells."""

import pytest

from fltr_pipeline.stores.schema.migration.layout import COLUMNS
from fltr_pipeline.stores.schema.migration.uses import Function, Trigger, of_sources

BREAKS, TOLD, FINE = [True], [False], list[bool]()


def judged(text: str, *functions: Function, on_users: bool = True, enabled: bool = True) -> list[bool]:
    trigger = Trigger("t", "users" if on_users else "payments", on_users, enabled, False, 1, text)
    own = Function(1, "t", "t()", text)
    return [found.blocks for found in of_sources([own, *functions], [trigger], COLUMNS) if "trigger" in found.what]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("RETURN NEW", FINE),
        ("IF ROW(NEW.*) IS DISTINCT FROM ROW(OLD.*) THEN RETURN NEW; END IF", TOLD),
        ("IF (old.*) <> (new.*) THEN NEW.updated_at = now(); END IF", TOLD),
        ("IF OLD.* IS DISTINCT FROM NEW.* THEN NEW.updated_at = now(); END IF", FINE),
        ("INSERT INTO log VALUES (hstore(OLD.*) - hstore(NEW.*))", TOLD),
        ("INSERT INTO log (j) SELECT row_to_json( new )", TOLD),
        ("INSERT INTO log SELECT 'D', now(), OLD.*", BREAKS),
        ("INSERT INTO log SELECT NEW.*", BREAKS),
        ("INSERT INTO log VALUES ( NEW .* )", BREAKS),
        ("INSERT INTO log VALUES ((old).*, now())", BREAKS),
        ("EXECUTE format('INSERT INTO %I SELECT ($1).*', TG_TABLE_NAME || '_log') USING OLD", BREAKS),
        ("NEW.Credits := 0", BREAKS),
        ('NEW."team_id" := NULL', BREAKS),
        ("NEW.extra_credits := 0", FINE),
    ],
)
def test_a_trigger_on_users(text: str, verdict: list[bool]) -> None:
    assert judged(text) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("UPDATE users SET credits = 0", BREAKS),
        ('UPDATE auth.public."users" SET\n  total_credits_purchased = 0', BREAKS),
        ("UPDATE user_credits SET credits = 0", FINE),
        ("UPDATE users SET updated_at = now()", FINE),
        ("INSERT INTO log SELECT NEW.*", FINE),
    ],
)
def test_a_trigger_on_another_table(text: str, verdict: list[bool]) -> None:
    assert judged(text, on_users=False) == verdict


def test_what_a_trigger_calls_counts_however_far_away() -> None:
    pays = Function(2, "pays", "pays()", "UPDATE users SET credits = 0")
    asks = Function(3, "Asks", "Asks()", "SELECT pays ()")
    assert judged('PERFORM "Asks"()', pays, asks, on_users=False) == BREAKS
    assert judged("PERFORM repays()", pays, asks, on_users=False) == FINE


def test_functions_that_call_each_other_come_to_an_end() -> None:
    one = Function(2, "one", "one()", "SELECT two() FROM users WHERE credits > 0")
    two = Function(3, "two", "two()", "SELECT one()")
    assert judged("PERFORM two()", one, two) == BREAKS


def test_a_disabled_trigger_is_told() -> None:
    assert judged("UPDATE users SET credits = 0", enabled=False) == TOLD
