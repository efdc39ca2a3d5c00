"""What a rebuild would take from others, or could not do: said in the plan, and refused before anything is done."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from fltr_pipeline.errors import ConfigurationError, RebuildRefused, StoreUnavailable
from fltr_pipeline.pipeline import rebuild
from fltr_pipeline.stores.schema import dump, init_fltr
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.verify import verify_fltr
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.command_line import fltr_pipeline
from fltr_pipeline_tests.rebuilding import HELD, database, no_runs, quiet, scene, script
from fltr_pipeline_tests.world import World

NewDatabase = Callable[[], str]

FALLS = """
CREATE TYPE mood AS ENUM ('fine');
CREATE SEQUENCE numbers;
CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE FUNCTION nothing() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE log (n int);
CREATE EXTENSION vector;
CREATE TABLE embedded (v vector(3));
CREATE VIEW goes_unseen AS SELECT id FROM documents;
CREATE SCHEMA reports;
CREATE TABLE reports.days (
    feeling mood DEFAULT 'fine' UNIQUE, n bigint DEFAULT nextval('numbers'), document_id text REFERENCES documents,
    v vector(3));
CREATE INDEX ON reports.days USING hnsw (v vector_l2_ops);
CREATE TABLE reports.part PARTITION OF parts FOR VALUES FROM (0) TO (9);
CREATE TABLE reports.heir () INHERITS (datasets);
CREATE VIEW reports.recent AS SELECT id FROM documents;
CREATE MATERIALIZED VIEW reports.sums AS SELECT count(*) FROM reports.recent;
CREATE FUNCTION reports.feel(mood) RETURNS int LANGUAGE sql RETURN 1;
CREATE TRIGGER touched BEFORE UPDATE ON reports.days FOR EACH ROW EXECUTE FUNCTION noop();
CREATE RULE noted AS ON INSERT TO reports.days DO ALSO INSERT INTO log VALUES (NEW.n);
CREATE EVENT TRIGGER tells ON table_rewrite EXECUTE FUNCTION nothing();
CREATE PUBLICATION news FOR TABLE ONLY documents, TABLES IN SCHEMA pipeline
"""

FALLEN = {
    "column feeling of table reports.days",
    "default value for column n of table reports.days",
    "constraint days_document_id_fkey on table reports.days",
    "column v of table reports.days",
    "extension vector",
    "table reports.part",
    "table reports.heir",
    "view reports.recent",
    "materialized view reports.sums",
    "function reports.feel(mood)",
    "trigger touched on table reports.days",
    "rule noted on table reports.days",
    "event trigger tells",
    "publication of table documents in publication news",
    "publication of schema pipeline in publication news",
}

STAYS = """
CREATE TABLE reports.apart (id int PRIMARY KEY);
CREATE TABLE points_out (id int REFERENCES reports.apart);
CREATE VIEW looks_out AS SELECT id FROM reports.apart;
CREATE EXTENSION vector SCHEMA reports;
CREATE TABLE embedded (v reports.vector(3));
CREATE PUBLICATION apart FOR TABLE reports.apart;
CREATE PUBLICATION everything FOR ALL TABLES
"""


def apply(world: World, folder: Path) -> rebuild.Rebuilt:
    return rebuild.apply(world.services, folder, no_runs, confirmed=database(world), tell=quiet)


# --- what is not ours to drop -----------------------------------------------------------------------------------------


def test_what_others_have_from_these_schemas_stands_against_a_rebuild(world: World, tmp_path: Path) -> None:
    script(world, FALLS)
    found = rebuild.plan(world.services, no_runs)
    assert set(found.survey.outside) == FALLEN
    assert [all(name in words for name in FALLEN) for words in found.refusals] == [True]
    with pytest.raises(RebuildRefused, match="drop it first, or make it independent"):
        apply(world, tmp_path / "dumps")
    assert not (tmp_path / "dumps").exists()


def test_what_is_named_is_just_what_postgresql_would_drop_elsewhere(world: World) -> None:
    script(world, FALLS)
    notices: list[str] = []
    with psycopg.connect(world.fltr_admin) as connection:
        connection.execute("SET client_min_messages = debug2")
        connection.add_notice_handler(
            lambda notice: notices.extend(f"{notice.message_primary}\n{notice.message_detail}".splitlines())
        )
        connection.execute("DROP SCHEMA public CASCADE; DROP SCHEMA pipeline CASCADE")
        connection.rollback()
    dropped = {words.split(" to ", 1)[1] for words in notices if words.startswith("drop ") and " to " in words}
    assert dropped >= FALLEN
    whole = {words.split()[-1] for words in FALLEN}  # a part of one of these is not named beside it
    assert not {words for words in dropped - FALLEN if "reports." in words and not any(w in words for w in whole)}


def test_what_only_stands_beside_them_is_left_alone(world: World, tmp_path: Path) -> None:
    script(world, f"CREATE SCHEMA reports; {STAYS}; INSERT INTO reports.apart VALUES (7)")
    assert rebuild.plan(world.services, no_runs).refusals == ()
    apply(world, tmp_path)
    assert world.rows("SELECT id FROM reports.apart") == [(7,)]
    assert world.rows("SELECT '[1,2,3]'::reports.vector::text") == [("[1,2,3]",)]
    assert world.rows("SELECT tablename FROM pg_publication_tables WHERE pubname = 'apart'") == [("apart",)]


# --- what the role may not do -----------------------------------------------------------------------------------------


@pytest.fixture
def owned(world: World, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An `fltr` whose owner is no administrator, and that owner's URL in the settings; yields the administrator's."""
    administrator = new_database()
    name = psycopg.conninfo.conninfo_to_dict(administrator)["dbname"]
    with psycopg.connect(administrator) as connection:
        connection.execute("CREATE ROLE rebuilds_owner LOGIN")
        connection.execute(f'ALTER DATABASE "{name}" OWNER TO rebuilds_owner'.encode())
    url = as_role(administrator, "rebuilds_owner")
    init_fltr(url)
    monkeypatch.setenv("FLTR_DATABASE_URL", url)
    yield administrator
    with psycopg.connect(administrator, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" OWNER TO postgres'.encode())
        connection.execute("DROP OWNED BY rebuilds_owner CASCADE; DROP ROLE rebuilds_owner")


LACKING = {
    "REVOKE CREATE ON DATABASE {} FROM rebuilds_owner": "CREATE on database {}",
    "ALTER SCHEMA public OWNER TO postgres": "ownership of schema public",
    "ALTER SCHEMA pipeline OWNER TO postgres": "ownership of schema pipeline",
    "CREATE SCHEMA reports; CREATE TABLE reports.days (n int)": "USAGE on schema reports",
    "GRANT USAGE ON SCHEMA reports TO PUBLIC": "SELECT on reports.days",
    "GRANT SELECT ON reports.days TO PUBLIC; ALTER TABLE reports.days ENABLE ROW LEVEL SECURITY": (
        "every row of reports.days, which has policies"
    ),
    "ALTER TABLE documents OWNER TO postgres": "SELECT on documents",
    "GRANT SELECT ON documents TO rebuilds_owner": "TRUNCATE on documents, to lock it",
}
"""Done one after the other, and what the owner lacks after each."""


def test_a_role_that_may_not_do_all_of_it_is_told_before_the_dump(world: World, owned: str, tmp_path: Path) -> None:
    with psycopg.connect(owned, autocommit=True) as connection:
        name = connection.info.dbname
        for statement, lacking in LACKING.items():
            connection.execute(statement.format(name).encode())
            found = rebuild.plan(world.services, no_runs)
            assert lacking.format(name) in found.survey.lacking
            assert [lacking.format(name) in words and "administrator" in words for words in found.refusals] == [True]
    unread = {f"{t.schema}.{t.name}" for t in found.survey.tables if t.rows is None}
    assert {"pipeline.documents", "pipeline.charges"} <= unread
    assert "public.documents" not in unread
    with pytest.raises(ConfigurationError, match=r"nothing was dropped.*an administrator"):
        rebuild.apply(world.services, tmp_path / "dumps", no_runs, confirmed=name, tell=quiet)
    assert not (tmp_path / "dumps").exists()


def test_the_plan_says_that_no_dump_can_be_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump, "_programs", lambda: iter(()))
    assert ["pg_dump" in words for words in rebuild.plan(world.services, no_runs).refusals] == [True]


# --- what other roles lose --------------------------------------------------------------------------------------------


def test_rights_that_are_lost_are_named_as_the_statements_that_give_them_again(world: World, tmp_path: Path) -> None:
    rights = (
        "ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public GRANT SELECT ON TABLES TO rebuilds_web",
        "ALTER SCHEMA pipeline OWNER TO rebuilds_web",
        "ALTER TABLE public.processing_jobs OWNER TO rebuilds_web",
        "GRANT CREATE ON SCHEMA public TO rebuilds_web",
        "GRANT DELETE, INSERT ON TABLE pipeline.upload_keys TO rebuilds_web",
        "GRANT SELECT (id), UPDATE (status) ON TABLE public.documents TO rebuilds_web",
        "GRANT SELECT ON TABLE public.datasets TO PUBLIC",
        "GRANT SELECT ON TABLE public.datasets TO rebuilds_web WITH GRANT OPTION",
    )
    script(world, f"CREATE ROLE rebuilds_web; {'; '.join(rights)}; CREATE TABLE users (id int)")
    script(world, "GRANT SELECT ON users TO rebuilds_web")
    told: list[str] = []
    try:
        assert rebuild.plan(world.services, no_runs).survey.rights == tuple(sorted(rights))
        done = rebuild.apply(world.services, tmp_path, no_runs, confirmed=database(world), tell=told.append)
        assert done.rights == tuple(sorted(rights))
        assert {f"to be granted again: {statement}" for statement in rights} <= set(told)
        assert rebuild.plan(world.services, no_runs).survey.rights == ()
        script(world, "; ".join(done.rights))
        assert rebuild.plan(world.services, no_runs).survey.rights == done.rights
    finally:
        script(world, "REASSIGN OWNED BY rebuilds_web TO postgres; DROP OWNED BY rebuilds_web; DROP ROLE rebuilds_web")


def test_a_schema_that_was_closed_to_everybody_is_named(world: World) -> None:
    script(world, "REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    assert rebuild.plan(world.services, no_runs).survey.rights == ("REVOKE USAGE ON SCHEMA public FROM PUBLIC",)


# --- money ------------------------------------------------------------------------------------------------------------


DAMAGES = (
    "transaction_metadata = '{}'",
    "transaction_metadata = NULL",
    "transaction_metadata = (transaction_metadata::jsonb - 'generation')::json",
    "transaction_metadata = (transaction_metadata::jsonb - 'kind' - 'op')::json, type = 'purchase'",
)


def test_a_hold_that_cannot_be_read_stands_against_a_rebuild(world: World, tmp_path: Path) -> None:
    made = scene(world)
    ((row_id, kept),) = world.auth_rows(
        "SELECT id, transaction_metadata::text FROM credit_transactions WHERE resource_id = 'gone'"
    )
    restore = "UPDATE credit_transactions SET transaction_metadata = %s::json, type = 'usage' WHERE id = %s"
    for damage in DAMAGES:
        world.change_auth(f"UPDATE credit_transactions SET {damage} WHERE id = %s", row_id)
        assert [str(row_id) in words for words in rebuild.plan(world.services, no_runs).refusals] == [True], damage
        with pytest.raises(RebuildRefused, match=rf"{row_id}.*credits audit.*restore"):
            apply(world, tmp_path)
        world.change_auth(restore, kept, row_id)
    assert list(tmp_path.glob("*.dump")) == []
    assert apply(world, tmp_path).credits_returned == HELD
    assert world.statement(made.payer).held == 0


def test_rows_of_other_programs_are_no_holds(world: World) -> None:
    payer = world.user()
    world.change_auth(
        "INSERT INTO credit_transactions (id, user_id, amount, type, operation, resource_id) VALUES"
        " (gen_random_uuid()::text, %(user)s, -5, 'usage', 'document_extract', 'd'),"
        " ('6f1c1a52-6b0c-5c53-9a4e-3d1d6b7f0e11', %(user)s, -5, 'usage', 'chat', 'd')".replace("%(user)s", "%s"),
        payer.user_id, payer.user_id,
    )  # fmt: skip
    assert rebuild.plan(world.services, no_runs).refusals == ()


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_that_are_left_are_for_reconcile_since_the_database_is_new(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scene(world)
    with monkeypatch.context() as patch:
        patch.setattr(VectorStore, "delete_listed", lambda *_: None)
        with pytest.raises(StoreUnavailable, match=r"was rebuilt, only vectors .* left: `fltr-pipeline reconcile`"):
            apply(world, tmp_path)
    assert verify_fltr(world.fltr_admin).conforms
    assert world.services.vectors.rows_by_dataset()[made.dataset.id] == 1
    assert fltr_pipeline("reconcile").exit_code == 0
    assert made.dataset.id not in world.services.vectors.rows_by_dataset()
