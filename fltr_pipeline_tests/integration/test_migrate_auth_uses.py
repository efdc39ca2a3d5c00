"""What else uses the columns that `fltr_auth`'s migration drops: what must go first, what goes along, what is told."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fltr_pipeline.errors import MigrationRefused
from fltr_pipeline.stores.schema import migration
from fltr_pipeline.stores.schema.migration import Outcome, State
from fltr_pipeline_tests import old_auth

SPEND = (
    "CREATE FUNCTION spend() RETURNS trigger LANGUAGE plpgsql "
    "AS 'BEGIN UPDATE users SET credits = credits + NEW.amount WHERE id = NEW.user_id; RETURN NEW; END'; "
    "CREATE TRIGGER spend AFTER INSERT ON credit_transactions FOR EACH ROW EXECUTE FUNCTION spend()"
)
"""How an application may keep balances in step with the ledger: each row of it fails once the column is gone."""

TOLD = {
    "function spent(text) mentions users": (
        "CREATE FUNCTION spent(u text) RETURNS integer LANGUAGE sql AS 'SELECT credits FROM users WHERE id = u'"
    ),
    "function has_team(users) mentions users": (
        "CREATE FUNCTION has_team(u users) RETURNS boolean LANGUAGE sql AS 'SELECT u.team_id IS NOT NULL'"
    ),
    "function refill() mentions users": (
        "CREATE PROCEDURE refill() LANGUAGE plpgsql AS 'BEGIN EXECUTE ''UPDATE users SET credits = 9''; END'"
    ),
    "trigger spend on credit_transactions has a function that mentions": (
        f"{SPEND}; ALTER TABLE credit_transactions DISABLE TRIGGER spend"
    ),
    "trigger history on users passes whole rows": (
        "CREATE TABLE history (was jsonb); CREATE FUNCTION history() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN INSERT INTO history VALUES (to_jsonb(OLD)); RETURN NEW; END'; "
        "CREATE TRIGGER history AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION history()"
    ),
    "trigger counts on users passes whole rows": (
        "CREATE TABLE counts (n bigint); CREATE FUNCTION counts() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN INSERT INTO counts SELECT count(*) FROM made; RETURN NULL; END'; "
        "CREATE TRIGGER counts AFTER INSERT ON users REFERENCING NEW TABLE AS made "
        "FOR EACH STATEMENT EXECUTE FUNCTION counts()"
    ),
    "publication everything has users": "CREATE PUBLICATION everything FOR ALL TABLES",
    "statistics object together goes with users.team_id": "CREATE STATISTICS together ON team_id, email FROM users",
    "index by_team goes with users.team_id": "CREATE INDEX by_team ON users (team_id)",
    "constraint in_team on table users goes with users.team_id": (
        "UPDATE users SET team_id = NULL; "
        "ALTER TABLE users ADD CONSTRAINT in_team FOREIGN KEY (team_id) REFERENCES teams (id)"
    ),
    "constraint sane on table users goes with users.total_credits_purchased": (
        "ALTER TABLE users ADD CONSTRAINT sane CHECK (total_credits_purchased < 2147483647)"
    ),
}
"""What the plan says → what does not keep the columns."""

NOT_CONCERNED = (
    "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql "
    "AS 'BEGIN IF NEW.* IS DISTINCT FROM OLD.* THEN NEW.updated_at = now(); END IF; RETURN NEW; END'; "
    "CREATE TRIGGER touch BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch(); "
    "CREATE FUNCTION poor() RETURNS trigger LANGUAGE plpgsql "
    "AS 'BEGIN IF NEW.credits < 0 THEN RAISE EXCEPTION ''poor''; END IF; RETURN NEW; END'; "
    "CREATE TRIGGER poor BEFORE UPDATE ON teams FOR EACH ROW EXECUTE FUNCTION poor(); "
    "CREATE FUNCTION balance(u text) RETURNS integer LANGUAGE plpgsql "
    "AS 'BEGIN RETURN (SELECT credits FROM user_credits WHERE user_id = u); END'; "
    "CREATE VIEW names AS SELECT id, name FROM users; CREATE PUBLICATION others FOR TABLE teams"
)

IN_THE_WAY = {
    "view rich": "CREATE VIEW rich AS SELECT id, credits FROM users WHERE credits > 100",
    "materialized view teamed": "CREATE MATERIALIZED VIEW teamed AS SELECT team_id FROM users",
    "column broke of table users": "ALTER TABLE users ADD broke boolean GENERATED ALWAYS AS (credits <= 0) STORED",
    "constraint paid_by_fkey": (
        "CREATE UNIQUE INDEX ON users (id, team_id); "
        "CREATE TABLE paid (u text, t text, CONSTRAINT paid_by_fkey FOREIGN KEY (u, t) REFERENCES users (id, team_id))"
    ),
    "trigger bound": (
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
        "CREATE TRIGGER bound AFTER UPDATE OF credits ON users FOR EACH ROW EXECUTE FUNCTION nothing()"
    ),
    "trigger watch": (
        "CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.credits = 5; RETURN NEW; END'; "
        "CREATE TRIGGER watch BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION watch()"
    ),
    "policy own": "CREATE POLICY own ON users USING (team_id IS NULL)",
    "policy rich on table teams": (
        "CREATE POLICY rich ON teams USING (EXISTS (SELECT FROM users WHERE id = owner_id AND credits > 0))"
    ),
    "rule kept on table users": (
        "CREATE TABLE log (credits integer); "
        "CREATE RULE kept AS ON DELETE TO users DO ALSO INSERT INTO log VALUES (OLD.credits)"
    ),
    "publication of table users in publication few": "CREATE PUBLICATION few FOR TABLE users (id, credits)",
    "function rich": (
        "CREATE FUNCTION rich(u text) RETURNS boolean LANGUAGE sql "
        "BEGIN ATOMIC SELECT credits > 100 FROM users WHERE id = u; END"
    ),
    "trigger spend on credit_transactions": SPEND,
    "trigger via on credit_transactions": (
        'CREATE FUNCTION "Move it"(who text, n integer) RETURNS void LANGUAGE sql '
        "AS 'UPDATE public.users SET credits = credits + n WHERE id = who'; "
        "CREATE FUNCTION via() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN PERFORM \"Move it\"(NEW.user_id, NEW.amount); RETURN NEW; END'; "
        "CREATE TRIGGER via AFTER INSERT ON credit_transactions FOR EACH ROW EXECUTE FUNCTION via()"
    ),
    "trigger audit on users": (
        "CREATE TABLE log AS SELECT now() AS at, u.* FROM users u LIMIT 0; "
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN INSERT INTO log SELECT now(), OLD.*; RETURN OLD; END'; "
        "CREATE TRIGGER audit AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION audit()"
    ),
    "trigger found on users": (
        "ALTER TABLE users ADD words tsvector; "
        "CREATE TRIGGER found BEFORE UPDATE ON users FOR EACH ROW "
        "EXECUTE FUNCTION tsvector_update_trigger('words', 'pg_catalog.english', 'name', 'team_id')"
    ),
    'column log."Was"': 'CREATE TABLE log ("Was" users[])',
    "index told_apart": (
        "UPDATE users SET credits = 0; ALTER TABLE users ALTER credits SET NOT NULL; "
        "CREATE UNIQUE INDEX told_apart ON users (id, credits); "
        "ALTER TABLE users REPLICA IDENTITY USING INDEX told_apart"
    ),
}
"""What the plan names → what keeps a column from being dropped, or would break without it."""


def silent(_: str) -> None: ...


def apply(url: str, dumps: Path) -> Outcome:
    return migration.apply(url, dumps, null_orphan_teams=True, tell=silent)


@pytest.fixture
def old(old_auth_copy: Callable[[], str]) -> str:
    """A database in the state `fresh`, with 500 awkward users."""
    return old_auth_copy()


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_hangs_on_a_column_is_named_and_keeps_it(old: str, tmp_path: Path, what: str) -> None:
    old_auth.execute(old, IN_THE_WAY[what])
    before = old_auth.fingerprint(old)
    with pytest.raises(MigrationRefused, match=what):
        apply(old, tmp_path)
    assert old_auth.fingerprint(old) == before


def test_what_is_only_to_know_is_told_and_keeps_nothing(old: str, tmp_path: Path) -> None:
    old_auth.execute(old, *TOLD.values())
    plan = migration.plan(old)
    notices = "; ".join(plan.shape.notices)
    assert [told for told in TOLD if told not in notices] == []
    assert apply(old, tmp_path).state is State.DONE
    old_auth.execute(
        old,
        "INSERT INTO users (id, name, email) VALUES ('new', 'N', 'n@example.org')",
        "UPDATE users SET name = 'M' WHERE id = 'new'",
        "INSERT INTO credit_transactions (id, user_id, amount, type) VALUES ('t', 'new', 1, 'purchase')",
    )


def test_what_has_nothing_to_do_with_the_columns_is_not_named(old: str) -> None:
    quiet = migration.plan(old).shape
    old_auth.execute(old, NOT_CONCERNED)
    assert migration.plan(old).shape == quiet


def test_once_the_columns_are_gone_nothing_uses_them(old: str, tmp_path: Path) -> None:
    """What the new application may do: give each user an account as they sign up."""
    apply(old, tmp_path)
    old_auth.execute(
        old,
        "CREATE FUNCTION welcome() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN INSERT INTO user_credits (user_id, credits) VALUES (NEW.id, 10); RETURN NEW; END'",
        "CREATE TRIGGER welcome AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION welcome()",
        "DROP TABLE __drizzle_migrations",
    )
    plan = migration.plan(old)
    assert (plan.state, plan.refusals(null_orphan_teams=False), plan.shape.notices) == (State.PARTIAL, (), ())
    assert apply(old, tmp_path).state is State.DONE
