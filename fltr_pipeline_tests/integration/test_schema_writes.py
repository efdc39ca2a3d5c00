"""Whatever types and CHECKs the owners chose: is what we write let in, and is it told when it isn't?"""

from collections.abc import Callable

import psycopg
import pytest

from fltr_pipeline.models import Op, ReprocessMode
from fltr_pipeline.stores.schema import AUTH_ROLE, init_auth_copy, init_fltr
from fltr_pipeline.stores.schema.connection import as_role, transaction
from fltr_pipeline.stores.schema.specification import FLTR, FLTR_AUTH, Written
from fltr_pipeline.stores.schema.verify import VerificationReport, verify_auth, verify_fltr
from fltr_pipeline_tests.world import World

NewDatabase = Callable[[], str]

STATUSES = "'uploaded', 'processing', 'ready', 'failed', 'awaiting_credits'"
JOB_STATUSES = "'queued', 'running', 'indexed', 'completed', 'failed', 'canceled'"

FLTR_HARMFUL = [
    ("documents.status", "ALTER TABLE documents ALTER COLUMN status TYPE varchar(12)", "awaiting_credits"),
    ("few", "ALTER TABLE documents ADD CONSTRAINT few CHECK (status IN ('uploaded', 'ready', 'failed'))", "processing"),
    (
        "documents.status",
        "CREATE TYPE state AS ENUM ('uploaded', 'processing', 'ready', 'failed');"
        "DROP INDEX documents_waiting_idx; ALTER TABLE documents ALTER COLUMN status DROP DEFAULT,"
        "ALTER COLUMN status TYPE state USING status::state",
        "awaiting_credits",
    ),
    (
        "processing_jobs.status",
        "CREATE DOMAIN job AS text CHECK (VALUE <> 'indexed'); ALTER TABLE processing_jobs ALTER status TYPE job",
        "indexed",
    ),
    ("filled", "ALTER TABLE documents ADD CONSTRAINT filled CHECK (content IS NOT NULL)", "null"),
    ("later", "ALTER TABLE datasets ADD CONSTRAINT later CHECK (length(name) > 3) NOT VALID", '"a"'),
]
FLTR_HARMLESS = [
    ("known", f"ALTER TABLE documents ADD CONSTRAINT known CHECK (status IN ({STATUSES}))"),
    ("named", "ALTER TABLE documents ADD CONSTRAINT named CHECK (filename NOT LIKE '%/%' AND filename <> '')"),
    (
        "documents.status",
        f"CREATE TYPE state AS ENUM ({STATUSES}); DROP INDEX documents_waiting_idx;"
        "ALTER TABLE documents ALTER COLUMN status DROP DEFAULT, ALTER COLUMN status TYPE state USING status::state",
    ),
]
AUTH_HARMFUL = [
    (
        "credit_transactions.type",
        "CREATE TYPE kind AS ENUM ('purchase', 'usage', 'bonus');"
        "ALTER TABLE credit_transactions ALTER type TYPE kind USING type::kind",
        "refund",
    ),
    (
        "credit_transactions.api_key_id",
        "ALTER TABLE credit_transactions ALTER api_key_id TYPE varchar(36)",
        "0000000",
    ),
    ("moved", "ALTER TABLE credit_transactions ADD CONSTRAINT moved CHECK (amount <> 0)", "amount = 0"),
    (
        "ops",
        "ALTER TABLE credit_transactions ADD CONSTRAINT ops CHECK (operation IN ('document_upload', 'mcp_query'))",
        "operation",
    ),
    ("rich", "ALTER TABLE user_credits ADD CONSTRAINT rich CHECK (credits > 0)", "credits = 0"),
    ("rich", "ALTER TABLE teams ADD CONSTRAINT rich CHECK (credits > 0)", "credits = 0"),
    ("rich", "ALTER TABLE api_key_credits ADD CONSTRAINT rich CHECK (credits > 0)", "credits = 0"),
]
AUTH_HARMLESS = [
    ("solvent", "ALTER TABLE user_credits ADD CONSTRAINT solvent CHECK (credits >= 0)"),
    (
        "signed",
        "ALTER TABLE credit_transactions ADD CONSTRAINT signed CHECK (CASE type WHEN 'usage' THEN amount <= 0"
        " WHEN 'refund' THEN amount > 0 ELSE amount >= 0 END)",
    ),
    (
        "credit_transactions.type",
        "CREATE TYPE kind AS ENUM ('purchase', 'usage', 'refund', 'bonus');"
        "ALTER TABLE credit_transactions ALTER type TYPE kind USING type::kind",
    ),
    ("ours", "ALTER TABLE credit_transactions ADD COLUMN channel text, ADD CONSTRAINT ours CHECK (channel <> '')"),
]


def found(report: VerificationReport, subject: str) -> list[str]:
    """Severity, and all that is said about the subject."""
    return [f"{f.severity}: {f.expected} / {f.found} / {f.mend}" for f in report.findings if f.subject == subject]


@pytest.fixture
def fltr(new_database: NewDatabase) -> str:
    url = new_database()
    init_fltr(url)
    return url


@pytest.fixture
def auth(new_database: NewDatabase) -> str:
    url = new_database()
    init_auth_copy(url)
    return url


def test_what_would_be_refused_is_harmful_and_says_which_value(fltr: str, auth: str) -> None:
    for url, verify, cases in ((fltr, verify_fltr, FLTR_HARMFUL), (auth, verify_auth, AUTH_HARMFUL)):
        with psycopg.connect(url) as connection:
            for subject, statement, value in cases:
                connection.execute(statement.encode())
                report = verify(connection)
                said = [line for line in found(report, subject) if line.startswith("harmful") and value in line]
                assert said, statement
                assert "ALTER TABLE" in said[0], statement
                connection.rollback()


def test_what_lets_everything_in_is_harmless(fltr: str, auth: str) -> None:
    for url, verify, cases in ((fltr, verify_fltr, FLTR_HARMLESS), (auth, verify_auth, AUTH_HARMLESS)):
        with psycopg.connect(url) as connection:
            for subject, statement in cases:
                connection.execute(statement.encode())
                report = verify(connection)
                assert report.conforms, (statement, report.harmful)
                assert found(report, subject)[0].startswith("harmless"), statement
                connection.rollback()


def test_the_least_privilege_role_finds_the_same(auth: str) -> None:
    for _, statement, _ in AUTH_HARMFUL:
        with psycopg.connect(auth) as connection:
            connection.execute(statement.encode())
            as_owner = [(f.severity, f.subject) for f in verify_auth(connection).findings]
            connection.execute(f"SET LOCAL ROLE {AUTH_ROLE}".encode())
            assert [(f.severity, f.subject) for f in verify_auth(connection).findings] == as_owner
            connection.rollback()


def test_a_check_that_this_role_may_not_try_is_listed_as_such(auth: str) -> None:
    with transaction(auth) as connection:
        connection.execute("CREATE FUNCTION secret(integer) RETURNS boolean LANGUAGE sql RETURN $1 > -5")
        connection.execute("REVOKE ALL ON FUNCTION secret(integer) FROM PUBLIC")
        connection.execute("ALTER TABLE credit_transactions ADD CONSTRAINT hidden CHECK (secret(amount))")
    (said,) = found(verify_auth(as_role(auth, AUTH_ROLE)), "hidden")
    assert said.startswith("harmless")
    assert "could not be tried" in said
    assert "could not be tried" not in found(verify_auth(auth), "hidden")[0]


def test_trying_writes_nothing_even_where_a_check_would(fltr: str) -> None:
    with transaction(fltr) as connection:
        connection.execute("CREATE TABLE public.seen (n integer)")
        connection.execute(
            "CREATE FUNCTION note(text) RETURNS boolean LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO public.seen VALUES (1); RETURN true; END'"
        )
        connection.execute("ALTER TABLE datasets ADD CONSTRAINT noted CHECK (note(name))")
    assert "could not be tried" in found(verify_fltr(fltr), "noted")[0]
    with transaction(fltr) as connection:
        assert connection.execute("SELECT count(*) FROM public.seen").fetchall() == [(0,)]


def test_what_is_tried_is_what_the_pipeline_writes(world: World) -> None:
    """On enumerations in place of text, too: `harmless` must mean that the work gets done."""
    world.change("DROP INDEX documents_waiting_idx")
    for table, column, labels in (("documents", "status", STATUSES), ("processing_jobs", "status", JOB_STATUSES)):
        world.change(f"CREATE TYPE {table}_state AS ENUM ({labels})")
        world.change(
            f"ALTER TABLE {table} ALTER {column} DROP DEFAULT, ALTER {column} TYPE {table}_state "
            f"USING {column}::{table}_state"
        )
    world.change("CREATE INDEX documents_waiting_idx ON documents (dataset_id, created_at) WHERE status = 'uploaded'")
    world.change_auth("CREATE TYPE kind AS ENUM ('purchase', 'usage', 'refund', 'bonus')")
    world.change_auth("ALTER TABLE credit_transactions ALTER type TYPE kind USING type::kind")
    payer = world.user(credits=30)
    world.services.ledger.grant(payer, 2, reason="try")
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": b"The treaty of Westphalia.", "empty.txt": b""})
    world.process(dataset)
    world.process(dataset, ReprocessMode.all)
    assert world.statuses(dataset) == {"a.txt": "ready", "empty.txt": "failed"}

    written = world.auth_rows("SELECT DISTINCT type::text, sign(amount)::int, operation FROM credit_transactions")
    known = {(row["type"], sign(row), row["operation"]) for row in FLTR_AUTH.table("credit_transactions").writes}
    ours = {row for row in written if row[2] in {*Op, "grant", "opening"}}
    assert ours <= known
    assert {kind for kind, _, _ in ours} == {"usage", "refund", "bonus"}
    assert {row["status"] for row in FLTR.table("documents").writes} >= {
        status for (status,) in world.rows("SELECT status::text FROM documents")
    }


def sign(row: Written) -> int:
    amount = row["amount"]
    assert isinstance(amount, int)
    return (amount > 0) - (amount < 0)
