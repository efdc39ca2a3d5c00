"""What the migration may not do, and what `user_credits` lacks of the rights on `users`."""

from dataclasses import replace

import pytest

from fltr_pipeline.stores.schema.migration.rights import Grant, OwnedTable, Rights

TABLE = OwnedTable("users", "owner", ours=True, row_security=False, ordinary=True)
ALL_RIGHT = Rights(
    role="me",
    standby=False,
    may_create=True,
    owner_may_create=True,
    may_give=True,
    tables=(TABLE,),
    users=(),
    accounts=(),
    unreadable=(),
    closed=(),
)


def test_who_may_do_everything_meets_no_obstacle() -> None:
    assert [*ALL_RIGHT.obstacles(), *ALL_RIGHT.obstacles_to_making(("user_credits",))] == []


def test_a_standby_is_an_obstacle() -> None:
    (why,) = replace(ALL_RIGHT, standby=True).obstacles()
    assert "URL of the primary" in why


def test_a_dump_that_can_read_little_names_ten_and_counts_the_rest() -> None:
    (why,) = replace(ALL_RIGHT, unreadable=tuple(f"t{n}" for n in range(13))).obstacles()
    assert "t9 and 3 more" in why
    assert "t10" not in why


@pytest.mark.parametrize(
    ("users", "accounts", "missing"),
    [
        ([Grant(None, "SELECT", None)], [], [Grant(None, "SELECT", None)]),
        ([Grant("a", "SELECT", None)], [Grant("a", "SELECT", None)], []),
        ([Grant("a", "SELECT", None)], [Grant("a", "SELECT", "credits")], [Grant("a", "SELECT", None)]),
        ([Grant("a", "UPDATE", "credits")], [Grant("a", "UPDATE", None)], []),
        (
            [Grant("a", "SELECT", "id"), Grant("a", "SELECT", "team_id"), Grant("a", "SELECT", "email")],
            [],
            [Grant("a", "SELECT", "user_id"), Grant("a", "SELECT", "team_id")],
        ),
        ([Grant("a", "SELECT", "id"), Grant("b", "SELECT", "credits")], [], [Grant("b", "SELECT", "credits")]),
        ([Grant("a", "SELECT", "credits"), Grant("a", "SELECT", None)], [], [Grant("a", "SELECT", None)]),
    ],
)
def test_rights_are_moved_with_the_columns(users: list[Grant], accounts: list[Grant], missing: list[Grant]) -> None:
    assert replace(ALL_RIGHT, users=tuple(users), accounts=tuple(accounts)).missing == tuple(missing)
