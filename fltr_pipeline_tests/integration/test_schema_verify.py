"""Verification on a live server: drift is found and named, harmless differences are told apart, by any role."""

from collections.abc import Callable, Iterator

import psycopg
import pytest

from fltr_pipeline.errors import SchemaDrift
from fltr_pipeline.stores.schema import AUTH_ROLE, init_auth_copy, init_fltr
from fltr_pipeline.stores.schema.compare import Severity
from fltr_pipeline.stores.schema.connection import Connection, as_role, transaction
from fltr_pipeline.stores.schema.verify import VerificationReport, verify_auth, verify_fltr

NewDatabase = Callable[[], str]


def references(table: str, column: str, target: str, rule: str = "") -> str:
    """Replaces a foreign key of Drizzle's name by one of the given target and rule."""
    known = {"user_id": "users_id", "owner_id": "users_id", "team_id": "teams_id"}
    known |= {"dataset_id": "datasets_id", "document_id": "documents_id"}
    name = f"{table}_{column}_{known[column]}_fk"
    return (
        f"ALTER TABLE {table} DROP CONSTRAINT {name}, "
        f"ADD CONSTRAINT {name} FOREIGN KEY ({column}) REFERENCES {target} {rule}"
    )


FLTR_HARMFUL = [
    ("users", "CREATE TABLE users (id text PRIMARY KEY, credits integer)"),
    ("alembic_version", "CREATE TABLE alembic_version (version_num varchar(32))"),
    ("processing_jobs", "DROP TABLE processing_jobs"),
    ("documents.content", "ALTER TABLE documents DROP COLUMN content"),
    ("documents.api_key", "ALTER TABLE documents ADD COLUMN api_key text"),
    ("documents.dataset_id", references("documents", "dataset_id", "datasets (id)")),
    (
        "processing_jobs.document_id",
        "ALTER TABLE processing_jobs DROP CONSTRAINT processing_jobs_document_id_documents_id_fk",
    ),
    ("datasets.name", "ALTER TABLE datasets ALTER COLUMN name TYPE bytea USING ''::bytea"),
    ("datasets.description", "ALTER TABLE datasets ALTER COLUMN description SET NOT NULL"),
    ("documents.content", "ALTER TABLE documents ALTER COLUMN content TYPE varchar(255)"),
    ("documents.content", "ALTER TABLE documents ALTER COLUMN content SET NOT NULL"),
    ("processing_jobs.id", "ALTER TABLE processing_jobs ALTER COLUMN id TYPE varchar(20)"),
    ("processing_jobs", "ALTER TABLE processing_jobs DROP CONSTRAINT processing_jobs_pkey"),
    ("documents.dataset_id", references("documents", "dataset_id", "datasets (id)", "ON DELETE CASCADE NOT VALID")),
    ("documents.dataset_id", "ALTER TABLE documents ADD FOREIGN KEY (dataset_id) REFERENCES datasets (id)"),
    (
        "datasets.user_id",
        "CREATE TABLE people (id text UNIQUE); ALTER TABLE datasets ADD FOREIGN KEY (user_id) REFERENCES people (id)",
    ),
]
FLTR_HARMLESS = [
    ("mine", "CREATE INDEX mine ON documents (filename)"),
    ("documents_waiting_idx", "DROP INDEX documents_waiting_idx"),
    ("recent", "CREATE VIEW recent AS SELECT id FROM documents"),
    ("documents.filename", "ALTER TABLE documents ALTER COLUMN filename TYPE varchar(500)"),
    ("processing_jobs.id", "ALTER TABLE processing_jobs ALTER COLUMN id TYPE varchar(36)"),
    ("documents.status", "ALTER TABLE documents ALTER COLUMN status DROP DEFAULT"),
    ("datasets.name", "ALTER TABLE datasets ALTER COLUMN name DROP NOT NULL"),
    ("documents.created_at", "ALTER TABLE documents ALTER COLUMN created_at TYPE timestamp"),
]

AUTH_HARMFUL = [
    ("user_credits", "DROP TABLE user_credits"),
    ("teams", "DROP TABLE teams CASCADE"),
    ("users.credits", "ALTER TABLE users ADD COLUMN credits integer DEFAULT 0"),
    ("users.total_credits_purchased", "ALTER TABLE users ADD COLUMN total_credits_purchased integer"),
    ("users.team_id", "ALTER TABLE users ADD COLUMN team_id text REFERENCES teams (id)"),
    ("users.email", "ALTER TABLE users DROP CONSTRAINT users_email_unique"),
    (
        "users.email",
        "ALTER TABLE users DROP CONSTRAINT users_email_unique; "
        "CREATE UNIQUE INDEX part ON users (email) WHERE email_verified",
    ),
    ("sessions.token", "ALTER TABLE sessions DROP CONSTRAINT sessions_token_unique"),
    ("sessions.user_id", references("sessions", "user_id", "users (id)")),
    (
        "credit_transactions.user_id",
        references("credit_transactions", "user_id", "user_credits (user_id)", "ON DELETE CASCADE"),
    ),
    ("api_key_credits.user_id", references("api_key_credits", "user_id", "user_credits (user_id)")),
    ("teams.owner_id", references("teams", "owner_id", "user_credits (user_id)", "ON DELETE CASCADE")),
    ("extra.user_id", "CREATE TABLE extra (user_id text REFERENCES user_credits (user_id))"),
    ("user_credits.user_id", references("user_credits", "user_id", "users (id)")),
    ("user_credits.team_id", references("user_credits", "team_id", "teams (id)", "ON DELETE CASCADE")),
    ("credit_transactions.team_id", references("credit_transactions", "team_id", "teams (id)", "ON DELETE CASCADE")),
    ("api_key_credits.team_id", references("api_key_credits", "team_id", "teams (id)", "ON DELETE SET NULL")),
    ("credit_transactions.team_id", "ALTER TABLE credit_transactions ALTER COLUMN team_id SET NOT NULL"),
    ("credit_transactions.api_key_id", "ALTER TABLE credit_transactions DROP COLUMN api_key_id"),
    ("user_credits.credits", "ALTER TABLE user_credits ALTER COLUMN credits DROP DEFAULT"),
    ("user_credits.credits", "ALTER TABLE user_credits ALTER COLUMN credits DROP NOT NULL"),
    ("user_credits.credits", "ALTER TABLE user_credits ALTER COLUMN credits TYPE text"),
    ("user_credits.team_id", "ALTER TABLE user_credits DROP COLUMN team_id"),
    ("__drizzle_migrations", "DROP TABLE __drizzle_migrations"),
]
AUTH_HARMLESS = [
    ("passkeys", "CREATE TABLE passkeys (id text PRIMARY KEY, user_id text REFERENCES users (id))"),
    ("users.two_factor_enabled", "ALTER TABLE users ADD COLUMN two_factor_enabled boolean"),
    ("ledger", "CREATE INDEX ledger ON credit_transactions (user_id, created_at)"),
    ("accounts.password", "ALTER TABLE accounts DROP COLUMN password"),
    ("credit_transactions.created_at", "ALTER TABLE credit_transactions ALTER COLUMN created_at TYPE timestamptz"),
    (
        "credit_transactions.transaction_metadata",
        "ALTER TABLE credit_transactions ALTER COLUMN transaction_metadata TYPE jsonb",
    ),
    ("users.name", "ALTER TABLE users ALTER COLUMN name TYPE varchar(255)"),
    ("teams.credits", "ALTER TABLE teams ALTER COLUMN credits DROP NOT NULL"),
    ("user_credits.team_id", references("user_credits", "team_id", "teams (id)", "ON DELETE RESTRICT")),
]

UUID_TABLES = """
CREATE TABLE datasets (
    id uuid PRIMARY KEY, user_id varchar NOT NULL, name varchar NOT NULL, description varchar,
    created_at timestamp NOT NULL, updated_at timestamp NOT NULL);
CREATE TABLE documents (
    id uuid PRIMARY KEY, dataset_id uuid NOT NULL REFERENCES datasets (id) ON DELETE CASCADE, filename varchar NOT NULL,
    content varchar, status varchar(32) NOT NULL, created_at timestamp NOT NULL, updated_at timestamp NOT NULL);
CREATE TABLE processing_jobs (
    id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    status varchar(32) NOT NULL, created_at timestamp NOT NULL, updated_at timestamp NOT NULL);
"""


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


@pytest.fixture
def changing() -> Iterator[Callable[[str], Connection]]:
    """A function that opens a transaction for changes that the test takes back at its end."""
    opened: list[Connection] = []

    def open_transaction(url: str) -> Connection:
        opened.append(psycopg.connect(url))
        return opened[-1]

    yield open_transaction
    for connection in opened:
        connection.rollback()
        connection.close()


def subjects(report: VerificationReport, severity: Severity) -> set[str]:
    return {
        finding.subject
        for finding in report.findings
        if finding.severity is severity and not finding.subject.startswith("query")
    }


def as_least_privilege(connection: Connection) -> VerificationReport:
    """The same verification in the same transaction, as the pipeline's own role."""
    connection.execute(f"SET LOCAL ROLE {AUTH_ROLE}".encode())
    report = verify_auth(connection)
    connection.execute("RESET ROLE")
    return report


def verdict(report: VerificationReport) -> list[tuple[str, str]]:
    return [(finding.severity, finding.subject) for finding in report.findings]


def test_every_drift_of_fltr_is_found_and_named(fltr: str, changing: Callable[[str], Connection]) -> None:
    connection = changing(fltr)
    for subject, statement in FLTR_HARMFUL:
        connection.execute(statement.encode())
        report = verify_fltr(connection)
        assert not report.conforms, statement
        assert subject in subjects(report, Severity.HARMFUL), statement
        assert all(finding.mend for finding in report.harmful), statement
        connection.rollback()


def test_harmless_differences_of_fltr_are_no_drift(fltr: str, changing: Callable[[str], Connection]) -> None:
    connection = changing(fltr)
    for subject, statement in FLTR_HARMLESS:
        connection.execute(statement.encode())
        report = verify_fltr(connection)
        assert report.conforms, statement
        assert subject in subjects(report, Severity.HARMLESS), statement
        connection.rollback()


def test_every_drift_of_fltr_auth_is_found_by_any_role(auth: str, changing: Callable[[str], Connection]) -> None:
    connection = changing(auth)
    for subject, statement in AUTH_HARMFUL:
        connection.execute(statement.encode())
        report = verify_auth(connection)
        assert subject in subjects(report, Severity.HARMFUL), statement
        assert all(finding.mend for finding in report.harmful), statement
        assert verdict(as_least_privilege(connection)) == verdict(report), statement
        connection.rollback()


def test_harmless_differences_of_fltr_auth_are_no_drift(auth: str, changing: Callable[[str], Connection]) -> None:
    connection = changing(auth)
    for subject, statement in AUTH_HARMLESS:
        connection.execute(statement.encode())
        report = verify_auth(connection)
        assert report.conforms, statement
        assert subject in subjects(report, Severity.HARMLESS), statement
        assert verdict(as_least_privilege(connection)) == verdict(report), statement
        connection.rollback()


def test_the_least_privilege_role_sees_a_conforming_database(auth: str) -> None:
    report = verify_auth(as_role(auth, AUTH_ROLE))
    assert report.conforms
    assert verdict(report) == verdict(verify_auth(auth))
    (fifth,) = [finding for finding in report.findings if finding.subject.startswith("query 5")]
    assert "pg_catalog" in fifth.found


def test_tables_with_uuid_and_varchar_ids_conform_and_can_be_completed(new_database: NewDatabase) -> None:
    fltr = new_database()
    with transaction(fltr) as connection:
        connection.execute(UUID_TABLES.encode())
    assert subjects(verify_fltr(fltr), Severity.HARMFUL) == {"schema pipeline"}
    init_fltr(fltr)
    report = verify_fltr(fltr)
    assert report.conforms
    assert "documents_waiting_idx" not in subjects(report, Severity.HARMLESS)


def test_the_waiting_documents_are_found_by_the_partial_index(fltr: str, changing: Callable[[str], Connection]) -> None:
    connection = changing(fltr)
    connection.execute("SET LOCAL enable_seqscan = off")
    plan = connection.execute(
        "EXPLAIN SELECT id FROM documents WHERE dataset_id = 'x' AND status = 'uploaded' ORDER BY created_at, id"
    ).fetchall()
    assert "documents_waiting_idx" in str(plan)


def test_a_constraint_of_the_same_name_elsewhere_neither_hides_nor_fakes_a_reference(
    auth: str, changing: Callable[[str], Connection]
) -> None:
    connection = changing(auth)
    name = "user_credits_user_id_users_id_fk"
    connection.execute(
        f"CREATE TABLE twin (user_id text CONSTRAINT {name} REFERENCES users (id) ON DELETE CASCADE)".encode()
    )
    assert verify_auth(connection).conforms
    connection.execute(f"ALTER TABLE user_credits DROP CONSTRAINT {name}".encode())
    connection.execute(
        f"ALTER TABLE user_credits ADD CONSTRAINT {name} FOREIGN KEY (user_id) REFERENCES teams (id)".encode()
    )
    report = verify_auth(connection)
    assert "user_credits.user_id" in subjects(report, Severity.HARMFUL)
    assert any(finding.subject.startswith("query 5") for finding in report.harmful)


def test_drift_can_be_required_away(fltr: str) -> None:
    verify_fltr(fltr).require()
    with transaction(fltr) as connection:
        connection.execute("CREATE TABLE users (id text)")
    with pytest.raises(SchemaDrift, match="users: expected no such table"):
        verify_fltr(fltr).require()


def test_how_to_mend_it_names_what_was_found_and_nothing_else(fltr: str) -> None:
    with psycopg.connect(fltr) as connection:
        connection.execute('CREATE TABLE "Documents" (id text)')
        connection.execute('ALTER TABLE documents ADD COLUMN "Content" text')
        mends = [finding.mend for finding in verify_fltr(connection).harmful]
        assert len(mends) >= 2
        for mend in mends:
            if "ALTER TABLE" in mend or "DROP TABLE" in mend:
                connection.execute(mend.rpartition("then ")[2].encode())
        assert verify_fltr(connection).conforms
        connection.rollback()
