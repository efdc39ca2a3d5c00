"""Whose the tables of `fltr_auth`'s migration are, who may read them afterwards, and who can't migrate."""

from collections.abc import Callable
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
        with pytest.raises(ConfigurationError, match="row-level security"):
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


def test_the_pipelines_own_role_may_not_migrate(old: str, templates: tuple[str, str], tmp_path: Path) -> None:
    assert templates  # whose making created the role
    before = old_auth.fingerprint(old)
    with pytest.raises(ConfigurationError, match=r"permission denied.*owner of users"):
        apply(as_role(old, AUTH_ROLE), tmp_path)
    assert old_auth.fingerprint(old) == before
