"""`fltr_auth`'s migration where part of it was done already, by hand or by another tool."""

from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
import pytest

from fltr_pipeline.errors import MigrationRefused
from fltr_pipeline.stores.schema import migration
from fltr_pipeline.stores.schema.migration import Outcome, State
from fltr_pipeline_tests import old_auth
from fltr_pipeline_tests.old_auth import DOCUMENT, JOURNAL, TIDY


def silent(_: str) -> None: ...


def apply(url: str, dumps: Path) -> Outcome:
    return migration.apply(url, dumps, null_orphan_teams=True, tell=silent)


@pytest.fixture
def old(old_auth_copy: Callable[[], str]) -> str:
    """A database in the state `fresh`, with 500 awkward users."""
    return old_auth_copy()


@pytest.fixture
def tidy(old: str) -> str:
    """The same, with neither a NULL nor a team that does not exist: the document's SQL can copy it."""
    old_auth.execute(old, *TIDY)
    return old


@pytest.mark.parametrize("done", range(1, len(DOCUMENT) + 1))
def test_a_run_of_the_documents_sql_that_stopped_anywhere_is_completed(tidy: str, tmp_path: Path, done: int) -> None:
    assert old_auth.run_document(tidy, DOCUMENT[:done]) == [None] * done
    assert migration.plan(tidy).state is State.PARTIAL
    assert apply(tidy, tmp_path).state is State.DONE
    old_auth.assert_migrated(tidy, old_auth.expected())
    assert apply(tidy, tmp_path).done == ()
    assert migration.rollback(tidy, tmp_path, tell=silent).state is State.FRESH
    assert old_auth.counted(migration.plan(tidy)).users.credits == sum(c for c, _, _ in old_auth.expected().values())


def test_rows_that_are_there_already_stay_as_they_are(old: str, tmp_path: Path) -> None:
    old_auth.execute(
        old,
        DOCUMENT[0],
        "INSERT INTO user_credits SELECT id, coalesce(credits, 0), coalesce(total_credits_purchased, 0), NULL, "
        "'2001-01-01', '2002-02-02' FROM users WHERE team_id IS NULL OR team_id = '' LIMIT 60",
    )
    found = old_auth.counted(migration.plan(old))
    assert (len(found.without_account), found.differing) == (old_auth.USERS - 60, ())
    apply(old, tmp_path)
    old_auth.assert_migrated(old, old_auth.expected())
    kept = "SELECT count(*) FROM user_credits WHERE created_at = '2001-01-01' AND updated_at = '2002-02-02'"
    assert old_auth.rows(old, kept) == [(60,)]


@pytest.mark.parametrize("done", [2, 3])
def test_a_partial_run_that_has_diverged_is_refused_with_the_rows_that_differ(
    tidy: str, tmp_path: Path, done: int
) -> None:
    old_auth.run_document(tidy, DOCUMENT[:done])
    old_auth.execute(
        tidy,
        "UPDATE user_credits SET credits = credits + 1, total_credits_purchased = 5 WHERE user_id = 'user-004'",
        "UPDATE user_credits SET team_id = 'team-2' WHERE user_id = 'user-000'",
    )
    before = old_auth.fingerprint(tidy)
    assert {row.user_id for row in old_auth.counted(migration.plan(tidy)).differing} == {"user-000", "user-004"}
    with pytest.raises(MigrationRefused, match=r"2 \(user-000 \(team team-0 and team-2\), user-004 \(.*purchased"):
        apply(tidy, tmp_path)
    with pytest.raises(MigrationRefused, match="users still has"):
        migration.rollback(tidy, tmp_path, tell=silent)
    assert old_auth.fingerprint(tidy) == before


@pytest.mark.parametrize("done", [5, 6])
def test_what_was_half_done_can_be_rolled_back_once_the_columns_are_gone(tidy: str, tmp_path: Path, done: int) -> None:
    old_auth.run_document(tidy, DOCUMENT[:done])
    assert migration.rollback(tidy, tmp_path, tell=silent).state is State.FRESH
    found = old_auth.rows(tidy, "SELECT id, credits, total_credits_purchased, team_id FROM users")
    assert {row[0]: row[1:] for row in found} == old_auth.expected()
    apply(tidy, tmp_path)
    old_auth.assert_migrated(tidy, old_auth.expected())


def test_an_account_of_nobody_is_a_difference(tidy: str, tmp_path: Path) -> None:
    old_auth.run_document(tidy, DOCUMENT[:2])
    old_auth.execute(
        tidy,
        "ALTER TABLE user_credits DROP CONSTRAINT user_credits_user_id_fkey",
        "INSERT INTO user_credits (user_id, credits) VALUES ('nobody', 5)",
    )
    with pytest.raises(MigrationRefused, match=r"1 \(nobody \(no such user\)\)"):
        apply(tidy, tmp_path)
    old_auth.execute(tidy, "DELETE FROM user_credits WHERE user_id = 'nobody'")
    apply(tidy, tmp_path)
    old_auth.assert_migrated(tidy, old_auth.expected())


@pytest.mark.parametrize(
    ("there", "notice"),
    [
        (JOURNAL[:2], ""),
        ([*JOURNAL, ("later", 1799999999999)], "skips every migration that is older"),
        ([("re-run", None)], "run all migrations again"),
    ],
)
def test_a_journal_gets_the_rows_that_it_lacks(
    tidy: str, tmp_path: Path, there: Sequence[tuple[str, int | None]], notice: str
) -> None:
    old_auth.execute(tidy, DOCUMENT[5])
    with psycopg.connect(tidy) as connection:
        connection.cursor().executemany("INSERT INTO __drizzle_migrations (hash, created_at) VALUES (%s, %s)", there)
    assert notice in "; ".join(migration.plan(tidy).shape.notices)
    apply(tidy, tmp_path)
    found = old_auth.rows(tidy, "SELECT hash, created_at FROM __drizzle_migrations ORDER BY id")
    assert found == [*there, *(row for row in JOURNAL if row not in there)]


def test_a_journal_elsewhere_is_reported_and_left(tidy: str, tmp_path: Path) -> None:
    old_auth.execute(tidy, "CREATE SCHEMA drizzle", DOCUMENT[5].replace("__drizzle", "drizzle.__drizzle"))
    plan = migration.plan(tidy)
    assert [journal.schema for journal in plan.layout.journals] == ["drizzle"]
    assert "configured for public" in "; ".join(plan.shape.notices)
    apply(tidy, tmp_path)
    old_auth.assert_migrated(tidy, old_auth.expected())
    assert old_auth.rows(tidy, "SELECT * FROM drizzle.__drizzle_migrations") == []


def test_a_journal_that_is_ahead_of_the_tables_changes_nothing_else(tidy: str, tmp_path: Path) -> None:
    old_auth.execute(tidy, *DOCUMENT[5:])
    plan = migration.plan(tidy)
    assert plan.state is State.FRESH
    assert not any("journal" in step.words or "drizzle" in step.words for step in plan.shape.steps)
    apply(tidy, tmp_path)
    old_auth.assert_migrated(tidy, old_auth.expected())


def test_checks_that_were_deferred_until_commit_keep_no_table_from_being_altered(tidy: str, tmp_path: Path) -> None:
    deferred = DOCUMENT[0].replace("REFERENCES teams(id)", "REFERENCES teams(id) INITIALLY DEFERRED")
    old_auth.execute(tidy, deferred.replace("ON DELETE CASCADE", "ON DELETE CASCADE INITIALLY DEFERRED"))
    apply(tidy, tmp_path)
    old_auth.assert_migrated(tidy, old_auth.expected())
    old_auth.execute(tidy, "INSERT INTO users (id, name, email) VALUES ('new', 'N', 'n@example.org')")
    assert migration.rollback(tidy, tmp_path, tell=silent).state is State.FRESH


def test_a_check_that_fails_takes_everything_back(old: str, tmp_path: Path) -> None:
    """Somebody's trigger adds a welcome bonus to each row that the copy writes."""
    old_auth.execute(
        old,
        DOCUMENT[0],
        "CREATE FUNCTION welcome() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.credits = 9; RETURN NEW; END'",
        "CREATE TRIGGER welcome BEFORE INSERT ON user_credits FOR EACH ROW EXECUTE FUNCTION welcome()",
    )
    before = old_auth.fingerprint(old)
    with pytest.raises(MigrationRefused, match="taken back"):
        apply(old, tmp_path)
    assert old_auth.fingerprint(old) == before


def test_what_postgresql_refuses_takes_everything_back(old: str, tmp_path: Path) -> None:
    old_auth.execute(old, DOCUMENT[0], "ALTER TABLE user_credits ADD CHECK (credits >= 0)")
    before = old_auth.fingerprint(old)
    with pytest.raises(MigrationRefused, match="check constraint"):
        apply(old, tmp_path)
    assert old_auth.fingerprint(old) == before
