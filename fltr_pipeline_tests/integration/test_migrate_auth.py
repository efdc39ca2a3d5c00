"""`fltr_auth`'s migration on a real server: each state, planned, applied, applied again, rolled back.

Which test has a state and what is done to it. `partial`, `traffic` and `cli` are this file's siblings, `kills` is
`faults/test_migrate_auth_kills.py`; "-" is where nothing runs, so that nothing can be killed or blocked:

| state | plan; apply, and again | killed | blocked | rollback |
| --- | --- | --- | --- | --- |
| fresh | the_plan_of; apply_moves | kills: apply | traffic: tries_again | restores |
| journal ahead of it | partial: ahead_of | as fresh | as fresh | restores |
| journal elsewhere | partial: elsewhere | as fresh | as fresh | as fresh |
| partial, with columns | partial: stopped 1, 2 | kills: apply | traffic: blocks | partial: diverged |
| partial, with some | partial: stopped 3, 4 | as above | as above | partial: diverged |
| partial, with none | partial: stopped 5 to 7 | as above | as above | partial: half_done |
| partial, diverged | partial: diverged | - | - | partial: diverged |
| done | apply_moves; cli: there_and_back | kills: rollback | traffic: blocks | restores |
| done, balances lost | cli: without_an_account; loses_all | - | - | as done |
| unknown | what_it_is_not_for | - | - | what_it_is_not_for |

Sign-ups and purchases meanwhile are in `traffic`; what must go first in `uses`; who may do it in `rights`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
import pytest

from fltr_pipeline.errors import MigrationRefused
from fltr_pipeline.stores.schema import migration
from fltr_pipeline.stores.schema.dump import dump
from fltr_pipeline.stores.schema.migration import Outcome, State, change, session
from fltr_pipeline.stores.schema.verify import verify_auth
from fltr_pipeline_tests import old_auth
from fltr_pipeline_tests.old_auth import DOCUMENT, INT4, ORPHANED, TIDY

NewDatabase = Callable[[], str]

UNKNOWN = {
    "there is no table users": ["DROP TABLE users CASCADE"],
    "users is not a table on its own": ["CREATE TABLE heirs () INHERITS (users)"],
    "no balances to be found": ["ALTER TABLE users DROP COLUMN credits"],
    "users.credits is of type numeric": ["ALTER TABLE users ALTER COLUMN credits TYPE numeric"],
    "there is no table teams": ["DROP TABLE teams CASCADE"],
    "users.created_at": ["ALTER TABLE users DROP COLUMN created_at"],
    "user_credits is not a table": ["CREATE VIEW user_credits AS SELECT id AS user_id FROM users"],
    "user_credits.total_credits_purchased": ["CREATE TABLE user_credits (user_id text PRIMARY KEY, credits integer)"],
    "is not the foreign key user_id": [DOCUMENT[0].replace("ON DELETE CASCADE", "")],
    "user_credits is not a table, but": ["CREATE TYPE user_credits AS ENUM ('many', 'few')"],
    "called user_credits_pkey": ["CREATE INDEX user_credits_pkey ON users (email)"],
    "user_credits is not a table on its own": [
        DOCUMENT[0] + " PARTITION BY HASH (user_id)",
        "CREATE TABLE part PARTITION OF user_credits FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    ],
    "__drizzle_migrations": ["CREATE TABLE __drizzle_migrations (id integer PRIMARY KEY, hash text)"],
    "__drizzle_migrations is not a table": ["CREATE SEQUENCE __drizzle_migrations"],
}
"""Words of the reason → how such a database comes to be."""


def silent(_: str) -> None: ...


def apply(url: str, dumps: Path, *, null_orphan_teams: bool = True) -> Outcome:
    return migration.apply(url, dumps, null_orphan_teams=null_orphan_teams, tell=silent)


@pytest.fixture
def old(old_auth_copy: NewDatabase) -> str:
    """A database in the state `fresh`, with 500 awkward users."""
    return old_auth_copy()


@pytest.fixture
def tidy(old: str) -> str:
    """The same, with neither a NULL nor a team that does not exist: the document's SQL can copy it."""
    old_auth.execute(old, *TIDY)
    return old


# --- fresh ------------------------------------------------------------------------------------------------------------


def test_the_plan_of_a_fresh_database_counts_everything_and_changes_nothing(old: str) -> None:
    users, before = list(old_auth.users()), old_auth.fingerprint(old)
    plan = migration.plan(old)
    found = old_auth.counted(plan)
    assert plan.state is State.FRESH
    assert (found.users.rows, found.accounts) == (old_auth.USERS, None)
    assert found.users.credits == sum(user.credits or 0 for user in users)
    assert found.users.purchased == sum(user.purchased or 0 for user in users)
    assert found.null_credits == sum(user.credits is None for user in users) > 0
    assert found.null_purchased == sum(user.purchased is None for user in users) > 0
    assert found.negative == sum((user.credits or 0) < 0 for user in users) > 0
    orphans = {user.id: user.team for user in users if user.team in ORPHANED.values()}
    assert {orphan.user_id: orphan.team_id for orphan in found.orphans} == orphans
    assert "" in orphans.values()
    assert plan.refusals(null_orphan_teams=True) == ()
    assert len(plan.shape.steps) == 5
    assert old_auth.fingerprint(old) == before


def test_apply_moves_every_balance_and_a_second_time_does_nothing(old: str, tmp_path: Path) -> None:
    planned = migration.plan(old)
    first = apply(old, tmp_path)
    old_auth.assert_migrated(old, old_auth.expected())
    assert first.state is State.DONE
    assert first.totals == old_auth.counted(planned).users
    assert first.nulled == old_auth.counted(planned).orphans
    assert first.dump is not None
    migrated = old_auth.fingerprint(old)
    again = apply(old, tmp_path)
    assert (again.state, again.done, again.dump) == (State.DONE, (), None)
    assert migration.plan(old).state is State.DONE
    assert old_auth.fingerprint(old) == migrated
    assert list(tmp_path.iterdir()) == [first.dump]


def test_the_times_of_a_user_are_those_of_their_account(old: str, tmp_path: Path) -> None:
    database = psycopg.conninfo.conninfo_to_dict(old)["dbname"]
    old_auth.execute(old, f"ALTER DATABASE \"{database}\" SET timezone TO 'Pacific/Chatham'")
    apply(old, tmp_path)
    query = "SELECT count(*) FROM users u JOIN user_credits c ON c.user_id = u.id AND c.created_at = u.created_at"
    assert old_auth.rows(old, query) == [(old_auth.USERS,)]


def test_users_of_teams_that_do_not_exist_are_listed_and_nothing_happens_unless_asked(old: str, tmp_path: Path) -> None:
    before = old_auth.fingerprint(old)
    with pytest.raises(MigrationRefused, match=r"teams that don't exist: 80 \(.* in team ''.* and 60 more\)"):
        apply(old, tmp_path, null_orphan_teams=False)
    assert old_auth.fingerprint(old) == before
    assert list(tmp_path.iterdir()) == []


def test_a_number_beyond_int4_is_refused(old: str, tmp_path: Path) -> None:
    old_auth.execute(
        old,
        "ALTER TABLE users ALTER COLUMN credits TYPE bigint",
        f"UPDATE users SET credits = {INT4 + 1} WHERE id = 'user-000'",
    )
    assert old_auth.counted(migration.plan(old)).overflows == ("user-000",)
    before = old_auth.fingerprint(old)
    with pytest.raises(MigrationRefused, match=r"beyond int4: 1 \(user-000\)"):
        apply(old, tmp_path)
    assert old_auth.fingerprint(old) == before


def test_smaller_types_and_uuid_ids_migrate_too(new_database: NewDatabase, tmp_path: Path) -> None:
    url = new_database()
    old_auth.execute(
        url,
        "CREATE TABLE users (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), created_at timestamptz, "
        "updated_at timestamptz, credits smallint, total_credits_purchased bigint, team_id varchar(40))",
        "CREATE TABLE teams (id uuid PRIMARY KEY DEFAULT gen_random_uuid())",
        "INSERT INTO teams SELECT FROM generate_series(1, 3)",
        "INSERT INTO users (created_at, credits, total_credits_purchased, team_id) "
        "SELECT '2026-06-01 12:00+02', 7, 70, id::text FROM teams",
        "INSERT INTO users (credits, team_id) VALUES (5, ''), (NULL, NULL)",
    )
    assert apply(url, tmp_path).state is State.DONE
    found = old_auth.rows(
        url,
        "SELECT credits, total_credits_purchased, created_at::text, t.id IS NULL FROM user_credits "
        "LEFT JOIN teams t ON t.id = team_id ORDER BY 1, 2, 4",
    )
    assert [row[:2] for row in found] == [(0, 0), (5, 0), (7, 70), (7, 70), (7, 70)]
    assert found[-1][2:] == ("2026-06-01 10:00:00", False)


@pytest.mark.parametrize("reason", UNKNOWN)
def test_what_it_is_not_for_is_unknown_with_its_reason_and_left_alone(old: str, tmp_path: Path, reason: str) -> None:
    old_auth.execute(old, *UNKNOWN[reason])
    before = old_auth.fingerprint(old)
    plan = migration.plan(old)
    assert plan.state is State.UNKNOWN
    assert reason in "; ".join(plan.refusals(null_orphan_teams=True))
    with pytest.raises(MigrationRefused, match="unknown"):
        apply(old, tmp_path)
    with pytest.raises(MigrationRefused, match="only a migrated"):
        migration.rollback(old, tmp_path, tell=silent)
    assert old_auth.fingerprint(old) == before


def test_a_search_path_of_the_applications_own_leads_nowhere_else(old: str, tmp_path: Path) -> None:
    name = psycopg.conninfo.conninfo_to_dict(old)["dbname"]
    old_auth.execute(
        old,
        "CREATE SCHEMA app",
        "CREATE TABLE app.users (id text PRIMARY KEY, credits integer)",
        "CREATE TABLE app.user_credits (user_id text PRIMARY KEY)",
        "CREATE VIEW app.teams AS SELECT 'team-0'::text AS id",
        f'ALTER DATABASE "{name}" SET search_path = app, public',
        f'ALTER DATABASE "{name}" SET default_transaction_read_only = on',
        f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'",
    )
    assert apply(old, tmp_path).state is State.DONE
    assert migration.rollback(old, tmp_path, tell=silent).state is State.FRESH
    assert apply(old, tmp_path).state is State.DONE
    assert old_auth.rows(old, "SELECT * FROM app.user_credits") == []
    old_auth.execute(old, "DROP SCHEMA app CASCADE")
    assert old_auth.accounts(old) == old_auth.expected()


def test_a_database_that_is_short_of_patience_cuts_nothing_off(old: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(old)["dbname"]
    for setting in ("statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout"):
        old_auth.execute(old, f"ALTER DATABASE \"{name}\" SET {setting} = '1h'")
    with session.only_run(old) as connection:
        assert connection.execute("SHOW idle_session_timeout").fetchone() == ("0",)
        with session.exclusive(connection, session.Patience(1, 0), silent):
            assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_rollback_restores_the_columns_from_the_current_balances(old: str, tmp_path: Path) -> None:
    apply(old, tmp_path)
    old_auth.execute(
        old,
        "UPDATE user_credits SET credits = credits + 5, total_credits_purchased = 77 WHERE user_id = 'user-004'",
        "UPDATE user_credits SET team_id = 'team-1' WHERE user_id = 'user-000'",
        "INSERT INTO users (id, name, email) VALUES ('new', 'New', 'new@example.org')",
    )
    wanted = {**old_auth.expected(), "new": (0, 0, None)}
    wanted["user-004"] = (wanted["user-004"][0] + 5, 77, wanted["user-004"][2])
    wanted["user-000"] = (*wanted["user-000"][:2], "team-1")
    outcome = migration.rollback(old, tmp_path, tell=silent)
    assert outcome.state is State.FRESH
    found = old_auth.rows(old, "SELECT id, credits, total_credits_purchased, team_id FROM users")
    assert {row[0]: row[1:] for row in found} == wanted
    assert old_auth.rows(old, "SELECT count(*) FROM __drizzle_migrations") == [(3,)]
    old_auth.execute(old, "INSERT INTO users (id, name, email) VALUES ('old app', 'O', 'o@example.org')")
    again = migration.rollback(old, tmp_path, tell=silent)
    assert (again.state, again.done, again.dump) == (State.FRESH, (), None)
    apply(old, tmp_path, null_orphan_teams=False)
    old_auth.assert_migrated(old, {**wanted, "old app": (0, 0, None)})


def test_rollback_drops_no_column_of_the_applications_own(tidy: str, tmp_path: Path) -> None:
    apply(tidy, tmp_path)
    old_auth.execute(tidy, "ALTER TABLE user_credits ADD COLUMN bonus_credits integer NOT NULL DEFAULT 7")
    with pytest.raises(MigrationRefused, match="bonus_credits"):
        migration.rollback(tidy, tmp_path, tell=silent)
    assert old_auth.rows(tidy, "SELECT DISTINCT bonus_credits FROM user_credits") == [(7,)]


def test_rollback_leaves_no_credits_in_holds(old: str, tmp_path: Path) -> None:
    apply(old, tmp_path / "first")
    row = "INSERT INTO credit_transactions (id, user_id, amount, type, transaction_metadata) VALUES "
    holds = {
        "open 1": """(-30, '{"kind": "reserve", "pot": "user:user-000"}')""",
        "open 2": """(-12, '{"kind": "reserve", "pot": "team:team-0"}')""",
        "ended": """(-50, '{"kind": "reserve", "pot": "user:user-000"}')""",
        "end": """(50, '{"kind": "close", "pot": "user:user-000", "hold_id": "ended"}')""",
    }
    for name, values in holds.items():
        amount, metadata = values.strip("()").split(", ", 1)
        old_auth.execute(old, f"{row} ('{name}', 'user-000', {amount}, 'usage', {metadata})")
    before = old_auth.fingerprint(old)
    with pytest.raises(MigrationRefused, match=r"42 credits are in 2 open holds.*`fltr-pipeline reconcile`"):
        migration.rollback(old, tmp_path / "second", tell=silent)
    assert not (tmp_path / "second").exists()
    assert old_auth.fingerprint(old) == before
    for name in ("open 1", "open 2"):
        close = f"""'{{"kind": "close", "hold_id": "{name}"}}'"""
        old_auth.execute(old, f"{row} ('end of {name}', 'user-000', 1, 'usage', {close})")
    assert migration.rollback(old, tmp_path / "second", tell=silent).state is State.FRESH


def test_a_hold_that_was_taken_during_the_dump_is_seen(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(old, tmp_path)

    def dump_while_the_pipeline_reserves(url: str, folder: Path, *, without: Sequence[str]) -> Path:
        old_auth.execute(
            old,
            "INSERT INTO credit_transactions (id, user_id, amount, type, transaction_metadata) "
            """VALUES ('late', 'user-000', -7, 'usage', '{"kind": "reserve", "pot": "user:user-000"}')""",
        )
        return dump(url, folder, without=without)

    monkeypatch.setattr(change, "dump", dump_while_the_pipeline_reserves)
    with pytest.raises(MigrationRefused, match="7 credits are in 1 open hold"):
        migration.rollback(old, tmp_path, tell=silent)
    assert migration.plan(old).state is State.DONE


def test_rollback_drops_nothing_that_others_use(old: str, tmp_path: Path) -> None:
    apply(old, tmp_path)
    old_auth.execute(old, "CREATE VIEW rich AS SELECT user_id FROM user_credits WHERE credits > 100")
    before = old_auth.fingerprint(old)
    with pytest.raises(MigrationRefused, match="view rich depends on table user_credits"):
        migration.rollback(old, tmp_path, tell=silent)
    assert old_auth.fingerprint(old) == before


def test_a_team_can_be_deleted_only_once_nobody_is_in_it(tidy: str, tmp_path: Path) -> None:
    apply(tidy, tmp_path)
    owned = "UPDATE teams SET owner_id = 'user-004' WHERE id = 'team-1'"
    for deletion in ("DELETE FROM teams WHERE id = 'team-1'", f"{owned}; DELETE FROM users WHERE id = 'user-004'"):
        with pytest.raises(psycopg.errors.ForeignKeyViolation, match="user_credits_team_id_teams_id_fk"):
            old_auth.execute(tidy, deletion)
        old_auth.execute(tidy, f"UPDATE user_credits SET team_id = NULL WHERE team_id = 'team-1'; {deletion}; ROLLBACK")


# --- why it is not done by the document's SQL alone -------------------------------------------------------------------


def test_the_documents_sql_loses_all_balances_at_the_first_null(old: str, tmp_path: Path) -> None:
    """Statement by statement, as `psql -f` runs it: the copy fails, and the columns are dropped all the same."""
    results = old_auth.run_document(old)
    assert results == [None, psycopg.errors.NotNullViolation, *[None] * 5]
    assert verify_auth(old).conforms
    assert old_auth.accounts(old) == {}
    with pytest.raises(MigrationRefused, match=r"500 .* restore these rows first"):
        apply(old, tmp_path)


def test_the_documents_sql_loses_a_purchase_between_copy_and_drop(tidy: str) -> None:
    old_auth.run_document(tidy, DOCUMENT[:2])
    old_auth.execute(tidy, "UPDATE users SET credits = credits + 100 WHERE id = 'user-000'")
    old_auth.run_document(tidy, DOCUMENT[2:])
    assert old_auth.accounts(tidy) == old_auth.expected()
    assert verify_auth(tidy).conforms
