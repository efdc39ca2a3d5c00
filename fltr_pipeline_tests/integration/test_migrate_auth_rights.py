"""Whose the tables of `fltr_auth`'s migration are, who may read them afterwards, and who can't migrate."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from fltr_pipeline.errors import ConfigurationError, MigrationRefused
from fltr_pipeline.stores.schema import AUTH_ROLE, migration
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.migration import Outcome, State
from fltr_pipeline_tests import old_auth


def silent(_: str) -> None: ...


def apply(url: str, dumps: Path) -> Outcome:
    return migration.apply(url, dumps, null_orphan_teams=True, tell=silent)


@pytest.fixture
def old(old_auth_copy: Callable[[], str]) -> str:
    """A database in the state `fresh`, with 500 awkward users."""
    return old_auth_copy()


NewRole = Callable[[str], str]

REFUSED = {
    "may not create user_credits and __drizzle_migrations: GRANT": ([], "GRANT CREATE ON SCHEMA public TO {me}"),
    "doesn't own teams: give the URL of postgres": (
        [
            "GRANT CREATE ON SCHEMA public TO {me}",
            "ALTER TABLE teams OWNER TO postgres",
            "GRANT SELECT ON teams TO {me}",
        ],
        "ALTER TABLE teams OWNER TO {me}",
    ),
    "can't read invoices, numbers, which the dump needs": (
        [
            "GRANT CREATE ON SCHEMA public TO {me}",
            "CREATE TABLE invoices (id integer); CREATE SEQUENCE numbers",
        ],
        "GRANT SELECT ON invoices, numbers TO {me}",
    ),
    "can't read hidden, which the dump needs": (
        [
            "GRANT CREATE ON SCHEMA public TO {me}",
            "CREATE TABLE hidden (id integer)",
            "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY",
            "GRANT SELECT ON hidden TO {me}",
        ],
        "ALTER ROLE {me} BYPASSRLS",
    ),
    "can be given no table: GRANT CREATE ON SCHEMA public TO": (
        ["GRANT CREATE ON SCHEMA public TO {me}", "ALTER TABLE users OWNER TO {other}", "GRANT {other} TO {me}"],
        "GRANT CREATE ON SCHEMA public TO {other}",
    ),
    "can't give a table to": (
        [
            "GRANT CREATE ON SCHEMA public TO {me}, {other}",
            "ALTER TABLE users OWNER TO {other}",
            "GRANT {other} TO {me} WITH INHERIT TRUE, SET FALSE",
        ],
        "GRANT {other} TO {me} WITH SET TRUE",
    ),
}
"""Why a role that owns all tables but for what follows can't migrate → what follows, what lets it."""


@pytest.fixture
def new_role(old: str) -> Iterator[NewRole]:
    """A function that makes a role which may log in and nothing else; its argument ends the role's name."""
    made: list[str] = []

    def make(name: str) -> str:
        made.append(f"{psycopg.conninfo.conninfo_to_dict(old)['dbname']}_{name}")
        old_auth.execute(old, f"CREATE ROLE {made[-1]} LOGIN")
        return made[-1]

    yield make
    old_auth.execute(old, *(f"REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}" for role in made))
    old_auth.execute(old, *(f"DROP ROLE {role}" for role in made))


def own_all(url: str, role: str) -> None:
    tables = old_auth.rows(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    old_auth.execute(url, *(f"ALTER TABLE {table} OWNER TO {role}" for (table,) in tables))


def owners(url: str) -> set[object]:
    query = "SELECT relowner::regrole::text FROM pg_class WHERE relname IN ('user_credits', '__drizzle_migrations')"
    return {owner for (owner,) in old_auth.rows(url, query)}


# --- who can't --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", REFUSED)
def test_a_role_that_can_not_migrate_hears_why_before_the_dump(
    old: str, tmp_path: Path, new_role: NewRole, why: str
) -> None:
    me, other = new_role("me"), new_role("other")
    own_all(old, me)
    lacking, granted = REFUSED[why]
    old_auth.execute(old, *(statement.format(me=me, other=other) for statement in lacking))
    before = old_auth.fingerprint(old)
    assert why in "; ".join(migration.plan(as_role(old, me)).refusals(null_orphan_teams=True))
    with pytest.raises(MigrationRefused, match=why):
        apply(as_role(old, me), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert old_auth.fingerprint(old) == before
    old_auth.execute(old, granted.format(me=me, other=other))
    assert apply(as_role(old, me), tmp_path).state is State.DONE
    old_auth.assert_migrated(old, old_auth.expected())


def test_what_a_managed_server_keeps_to_itself_stands_against_nothing(
    old: str, tmp_path: Path, new_role: NewRole
) -> None:
    me = new_role("me")
    own_all(old, me)
    old_auth.execute(
        old,
        f"GRANT CREATE ON SCHEMA public TO {me}",
        "CREATE SCHEMA auth CREATE TABLE users (id uuid, email text) CREATE SEQUENCE numbers",
        'CREATE SCHEMA "Storage.*"; CREATE TABLE "Storage.*".objects (id integer)',
        "CREATE FUNCTION public.signed_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO public.users (id, name, email) VALUES (NEW.id, '', NEW.email); RETURN NEW; END $$",
        "CREATE TRIGGER signed_up AFTER INSERT ON auth.users FOR EACH ROW EXECUTE FUNCTION public.signed_up()",
        "CREATE FUNCTION public.changed() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$",
        "CREATE EVENT TRIGGER changed ON ddl_command_end EXECUTE FUNCTION public.changed()",
        "CREATE EXTENSION vector",
        "CREATE MATERIALIZED VIEW people AS SELECT id, email FROM users",
    )
    plan = migration.plan(as_role(old, me))
    assert plan.refusals(null_orphan_teams=True) == ()
    assert any("leaves out schemas Storage.*, auth, where" in notice for notice in plan.shape.notices)
    told: list[str] = []
    done = migration.apply(as_role(old, me), tmp_path, null_orphan_teams=True, tell=told.append)
    assert told == [f"dump: {done.dump}, without Storage.*, auth"]
    old_auth.assert_migrated(old, old_auth.expected())
    assert migration.rollback(as_role(old, me), tmp_path, tell=silent).state is State.FRESH


def test_a_role_that_can_not_roll_back_hears_why_before_the_dump(old: str, tmp_path: Path, new_role: NewRole) -> None:
    apply(old, tmp_path / "first")
    me = new_role("me")
    own_all(old, me)
    old_auth.execute(old, "ALTER TABLE user_credits OWNER TO postgres", f"GRANT SELECT ON user_credits TO {me}")
    with pytest.raises(MigrationRefused, match="doesn't own user_credits"):
        migration.rollback(as_role(old, me), tmp_path / "second", tell=silent)
    assert not (tmp_path / "second").exists()
    old_auth.execute(old, f"ALTER TABLE user_credits OWNER TO {me}")
    assert migration.rollback(as_role(old, me), tmp_path / "second", tell=silent).state is State.FRESH


def test_the_pipelines_own_role_may_not_migrate(old: str, templates: tuple[str, str], tmp_path: Path) -> None:
    assert templates  # whose making created the role
    before = old_auth.fingerprint(old)
    with pytest.raises(ConfigurationError, match=r"permission denied.*owner of users"):
        apply(as_role(old, AUTH_ROLE), tmp_path)
    assert old_auth.fingerprint(old) == before


# --- whose it is afterwards -------------------------------------------------------------------------------------------


def test_rights_of_everybody_and_on_single_columns_are_carried_over(
    old: str, tmp_path: Path, new_role: NewRole
) -> None:
    shop, reader = new_role("shop"), new_role("reader")
    old_auth.execute(
        old,
        f"GRANT SELECT (id, email, credits), UPDATE (credits, name) ON users TO {shop}",
        f"GRANT SELECT (id, email) ON users TO {reader}",
    )
    apply(old, tmp_path)
    old_auth.execute(as_role(old, shop), "UPDATE user_credits SET credits = 3 WHERE user_id = 'user-000'")
    for role, statement in {
        shop: "SELECT team_id FROM user_credits",
        reader: "SELECT user_id FROM user_credits",
    }.items():
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            old_auth.rows(as_role(old, role), statement)
    migration.rollback(old, tmp_path, tell=silent)
    old_auth.execute(old, "GRANT SELECT ON users TO PUBLIC")
    apply(old, tmp_path)
    assert old_auth.rows(as_role(old, reader), "SELECT count(*) FROM user_credits") == [(old_auth.USERS,)]


def test_a_table_that_another_role_made_gets_owner_and_rights_of_users(
    old: str, tmp_path: Path, new_role: NewRole
) -> None:
    owner, maker, shop = new_role("owner"), new_role("maker"), new_role("shop")
    own_all(old, owner)
    old_auth.execute(
        old,
        f"GRANT CREATE ON SCHEMA public TO {maker}, {owner}",
        f"GRANT REFERENCES ON users, teams TO {maker}",
        f"GRANT SELECT, UPDATE ON users TO {shop}, {maker}",
    )
    old_auth.execute(as_role(old, maker), old_auth.DOCUMENT[0], old_auth.DOCUMENT[5])
    assert any(maker in notice for notice in migration.plan(old).shape.notices)
    apply(old, tmp_path)
    old_auth.assert_migrated(old, old_auth.expected())
    assert owners(old) == {owner}
    for role in (shop, maker):
        old_auth.execute(as_role(old, role), "UPDATE user_credits SET credits = credits WHERE user_id = 'user-000'")


def test_owner_and_rights_that_were_changed_afterwards_are_told_and_left(
    old: str, tmp_path: Path, new_role: NewRole
) -> None:
    other, shop = new_role("other"), new_role("shop")
    old_auth.execute(old, f"GRANT SELECT ON users TO {shop}")
    apply(old, tmp_path)
    old_auth.execute(old, f"REVOKE SELECT ON user_credits FROM {shop}", f"ALTER TABLE user_credits OWNER TO {other}")
    plan = migration.plan(old)
    assert (plan.state, plan.shape.steps) == (State.DONE, ())
    assert f"user_credits belongs to {other}, users to postgres" in plan.shape.notices
    assert apply(old, tmp_path).done == ()


def test_a_table_that_is_there_is_not_opened_to_those_whom_policies_kept_out(
    old: str, tmp_path: Path, new_role: NewRole
) -> None:
    anybody = new_role("anybody")
    old_auth.execute(
        old,
        old_auth.DOCUMENT[0],
        f"GRANT SELECT ON users TO {anybody}",
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY",
    )
    assert any("whoever may read it" in notice for notice in migration.plan(old).shape.notices)
    apply(old, tmp_path)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        old_auth.rows(as_role(old, anybody), "SELECT * FROM user_credits")


def test_owner_and_rights_are_those_of_users_whoever_runs_it(old: str, tmp_path: Path) -> None:
    database = psycopg.conninfo.conninfo_to_dict(old)["dbname"]
    owner, application = f'"{database} Owner"', f"{database}_app"
    old_auth.execute(
        old,
        f"CREATE ROLE {owner}",
        f"CREATE ROLE {application}",
        f"GRANT CREATE ON SCHEMA public TO {owner}",
        f"ALTER TABLE users OWNER TO {owner}",
        f"GRANT SELECT, INSERT, UPDATE, TRUNCATE ON users TO {application}",
    )
    try:
        apply(old, tmp_path)
        owners = "SELECT relname::text, relowner::regrole::text FROM pg_class WHERE relname ~ 'user_credits|drizzle'"
        assert {name for _, name in old_auth.rows(old, owners)} == {owner}
        rights = (
            "SELECT privilege_type FROM information_schema.role_table_grants "
            f"WHERE table_name = 'user_credits' AND grantee = '{application}' ORDER BY 1"
        )
        assert old_auth.rows(old, rights) == [("INSERT",), ("SELECT",), ("UPDATE",)]
    finally:
        old_auth.execute(
            old,
            f"REASSIGN OWNED BY {owner} TO postgres",
            *(f"DROP OWNED BY {role}" for role in (owner, application)),
            *(f"DROP ROLE {role}" for role in (owner, application)),
        )


def test_the_owner_needs_no_other_rights_but_must_see_all_rows(old: str, tmp_path: Path) -> None:
    owner = f"{psycopg.conninfo.conninfo_to_dict(old)['dbname']}_owner"
    tables = old_auth.rows(old, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    old_auth.execute(
        old,
        f"CREATE ROLE {owner} LOGIN",
        f"GRANT CREATE ON SCHEMA public TO {owner}",
        *(f"ALTER TABLE {table} OWNER TO {owner}" for (table,) in tables),
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "CREATE POLICY few ON users USING (id < 'user-100')",
    )
    try:
        before = old_auth.fingerprint(old)
        with pytest.raises(ConfigurationError, match=r"row-level security.*NO FORCE ROW LEVEL SECURITY.*BYPASSRLS"):
            apply(as_role(old, owner), tmp_path)
        assert old_auth.fingerprint(old) == before
        old_auth.execute(old, "ALTER TABLE users NO FORCE ROW LEVEL SECURITY")
        apply(as_role(old, owner), tmp_path)
        old_auth.assert_migrated(old, old_auth.expected())
        assert migration.rollback(as_role(old, owner), tmp_path, tell=silent).state is State.FRESH
    finally:
        old_auth.execute(old, f"REASSIGN OWNED BY {owner} TO postgres", f"DROP OWNED BY {owner}", f"DROP ROLE {owner}")


def test_what_policies_hid_stays_hidden(old: str, tmp_path: Path) -> None:
    anybody = f"{psycopg.conninfo.conninfo_to_dict(old)['dbname']}_anybody"
    old_auth.execute(
        old,
        f"CREATE ROLE {anybody} LOGIN",
        f"GRANT SELECT, UPDATE ON users TO {anybody}",
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY nobody ON users USING (id = 'x')",
    )
    try:
        assert any("row-level security" in notice for notice in migration.plan(old).shape.notices)
        apply(old, tmp_path)
        old_auth.assert_migrated(old, old_auth.expected())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            old_auth.rows(as_role(old, anybody), "SELECT * FROM user_credits")
        old_auth.execute(old, f"GRANT SELECT ON user_credits TO {anybody}")
        assert old_auth.rows(as_role(old, anybody), "SELECT * FROM user_credits") == []
    finally:
        old_auth.execute(old, f"DROP OWNED BY {anybody}", f"DROP ROLE {anybody}")
