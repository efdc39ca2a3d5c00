"""The specification as data: does it say what the document says, does the DDL follow, are differences judged right?"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.stores.schema import ddl
from fltr_pipeline.stores.schema.catalog import Catalog, FoundColumn, FoundForeignKey, FoundIndex, FoundTable
from fltr_pipeline.stores.schema.compare import Finding, Severity, differences
from fltr_pipeline.stores.schema.connection import as_role, libpq_url
from fltr_pipeline.stores.schema.specification import (
    FLTR,
    FLTR_AUTH,
    Column,
    Database,
    ForeignKey,
    OnDelete,
    Source,
    Table,
)
from fltr_pipeline.stores.schema.verify import FOREIGN_KEYS_QUERY, TABLES_QUERY

# The document's lists, retyped: the specification in the code is held against them.
FLTR_COLUMNS = {
    "datasets": "id user_id name description created_at updated_at",
    "documents": "id dataset_id filename content status created_at updated_at",
    "processing_jobs": "id document_id status created_at updated_at",
}
AUTH_COLUMNS = {
    "users": "id name email email_verified image avatar avatar_url created_at updated_at stripe_customer_id",
    "sessions": "id user_id token expires_at created_at updated_at ip_address user_agent",
    "accounts": "id user_id account_id provider_id access_token refresh_token created_at updated_at",
    "verifications": "id identifier value expires_at created_at updated_at",
    "subscriptions": "id plan reference_id stripe_customer_id stripe_subscription_id status period_start period_end "
    "cancel_at_period_end seats trial_start trial_end",
    "teams": "id name credits owner_id created_at updated_at",
    "user_credits": "user_id credits total_credits_purchased team_id created_at updated_at",
    "credit_transactions": "id user_id team_id amount type operation resource_id api_key_id transaction_metadata "
    "created_at",
    "api_key_credits": "api_key user_id team_id credits daily_limit monthly_limit created_at updated_at",
    "__drizzle_migrations": "id hash created_at",
}
REFERENCES = {
    ("sessions", "user_id", "users", "CASCADE"),
    ("accounts", "user_id", "users", "CASCADE"),
    ("teams", "owner_id", "users", "CASCADE"),
    ("user_credits", "user_id", "users", "CASCADE"),
    ("credit_transactions", "user_id", "users", "CASCADE"),
    ("api_key_credits", "user_id", "users", "CASCADE"),
    ("user_credits", "team_id", "teams", "NO ACTION"),
    ("credit_transactions", "team_id", "teams", "SET NULL"),
    ("api_key_credits", "team_id", "teams", "CASCADE"),
    ("documents", "dataset_id", "datasets", "CASCADE"),
    ("processing_jobs", "document_id", "documents", "CASCADE"),
}

QUERIES = {
    TABLES_QUERY: "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename;",
    FOREIGN_KEYS_QUERY: "SELECT tc.table_name, kcu.column_name, ccu.table_name AS foreign_table, "
    "ccu.column_name AS foreign_column FROM information_schema.table_constraints tc "
    "JOIN information_schema.key_column_usage kcu ON tc.constraint_name = kcu.constraint_name "
    "JOIN information_schema.constraint_column_usage ccu ON ccu.constraint_name = tc.constraint_name "
    "WHERE tc.constraint_type = 'FOREIGN KEY' "
    "AND tc.table_name IN ('user_credits', 'credit_transactions', 'api_key_credits', 'teams') ORDER BY tc.table_name;",
}

DATABASES = (FLTR, FLTR_AUTH)
TABLES = [(database, table) for database in DATABASES for table in database.tables]
COLUMNS = [(database, table, column) for database, table in TABLES for column in table.columns]
FOREIGN_KEYS = [(database, table, key) for database, table in TABLES for key in table.foreign_keys]


def conforming(database: Database) -> Catalog:
    """The catalog of a database that is exactly as specified."""
    return Catalog(tuple(_found(table) for table in database.tables))


def _found(table: Table) -> FoundTable:
    indexes = [FoundIndex(f"{table.name}_pkey", True, True, (table.primary_key,))]
    indexes += [FoundIndex(f"{table.name}_{column}_unique", False, True, (column,)) for column in table.unique]
    indexes += [FoundIndex(index.name, False, False, tuple(index.columns.split(", "))) for index in table.indexes]
    return FoundTable(
        table.name,
        tuple(FoundColumn(c.name, c.type.sql, c.nullable, c.default) for c in table.columns),
        tuple(indexes),
        tuple(
            FoundForeignKey(k.name, (k.column,), k.target, (k.target_column,), k.on_delete, True)
            for k in table.foreign_keys
        ),
    )


def with_table(catalog: Catalog, changed: FoundTable) -> Catalog:
    return replace(catalog, tables=tuple(changed if t.name == changed.name else t for t in catalog.tables))


def found_table(database: Database, name: str) -> FoundTable:
    return next(table for table in conforming(database).tables if table.name == name)


def with_column(database: Database, table: Table, changed: FoundColumn) -> Catalog:
    found = found_table(database, table.name)
    columns = tuple(changed if column.name == changed.name else column for column in found.columns)
    return with_table(conforming(database), replace(found, columns=columns))


def harmful(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.subject for finding in findings if finding.severity is Severity.HARMFUL]


@pytest.mark.parametrize(("database", "listed"), [(FLTR, FLTR_COLUMNS), (FLTR_AUTH, AUTH_COLUMNS)])
def test_tables_and_columns_are_the_documents(database: Database, listed: dict[str, str]) -> None:
    from_document = {Source.SPECIFICATION, Source.MIGRATION}
    named = {
        table.name: {column.name for column in table.columns if column.source in from_document}
        for table in database.tables
    }
    assert named == {name: set(columns.split()) for name, columns in listed.items()}


def test_only_accounts_has_columns_that_the_document_leaves_open() -> None:
    open_ended = {table.name for _, table, column in COLUMNS if column.source is Source.BETTER_AUTH}
    assert open_ended == {"accounts"}


def test_references_are_the_documents() -> None:
    assert {(k.table, k.column, k.target, str(k.on_delete)) for _, _, k in FOREIGN_KEYS} == REFERENCES
    assert all(key.target_column == "id" for _, _, key in FOREIGN_KEYS)


def test_the_queries_are_the_documents_as_they_stand() -> None:
    for query, in_document in QUERIES.items():
        assert query.split() == in_document.split()


def test_each_fact_names_its_source() -> None:
    sources = {column.source for _, _, column in COLUMNS} | {key.source for _, _, key in FOREIGN_KEYS}
    sources |= {table.source for _, table in TABLES} | {i.source for _, table in TABLES for i in table.indexes}
    assert sources <= set(Source)
    for _, table, column in COLUMNS:
        assert column.type_source in Source, (table.name, column.name)
    assert all(column.source in {Source.SPECIFICATION, Source.MIGRATION} for d, _, column in COLUMNS if d is FLTR)


def test_what_is_written_goes_into_columns_that_are_there() -> None:
    for _, table in TABLES:
        columns = {column.name for column in table.columns}
        assert all(row.keys() <= columns for row in table.writes)
        assert bool(table.writes) >= table.inserted
    assert {table.name for _, table in TABLES if table.writes} == {
        "datasets", "documents", "processing_jobs", "teams", "user_credits", "api_key_credits", "credit_transactions",
    }  # fmt: skip


def test_constraints_are_named_as_drizzle_names_them() -> None:
    names = {key.name for key in FLTR_AUTH.table("user_credits").foreign_keys}
    assert names == {"user_credits_user_id_users_id_fk", "user_credits_team_id_teams_id_fk"}


def test_the_ddl_is_the_same_every_time_and_creates_before_it_refers() -> None:
    for database in DATABASES:
        assert ddl.script(database) == ddl.script(database)
        made: set[str] = set()
        for table in database.tables:
            assert {key.target for key in table.foreign_keys} <= made | {table.name}
            made.add(table.name)


def test_the_journal_holds_the_three_rows_as_given() -> None:
    assert [created_at for _, created_at in FLTR_AUTH.table("__drizzle_migrations").rows] == [
        1760114263106,
        1761915734970,
        1762369692832,
    ]
    assert all(len(digest) == 64 for digest, _ in FLTR_AUTH.table("__drizzle_migrations").rows)


@pytest.mark.parametrize("database", DATABASES, ids=lambda d: d.name)
def test_what_conforms_has_no_differences(database: Database) -> None:
    findings = differences(database, conforming(database))
    assert {finding.severity for finding in findings} == {Severity.OK}
    assert [finding.subject for finding in findings] == [table.name for table in database.tables]


@given(st.sampled_from(TABLES))
def test_any_missing_table_is_harmful_and_named(case: tuple[Database, Table]) -> None:
    database, table = case
    whole = conforming(database)
    found = replace(whole, tables=tuple(t for t in whole.tables if t.name != table.name))
    assert harmful(differences(database, found)) == [table.name]


@given(st.sampled_from(COLUMNS))
def test_any_missing_column_is_named_and_harmful_if_the_document_names_it(case: tuple[Database, Table, Column]) -> None:
    database, table, column = case
    whole = found_table(database, table.name)
    found = replace(whole, columns=tuple(c for c in whole.columns if c.name != column.name))
    findings = differences(database, with_table(conforming(database), found))
    subject = f"{table.name}.{column.name}"
    assert [f.subject for f in findings if f.severity is not Severity.OK] == [subject]
    assert harmful(findings) == ([] if column.source is Source.BETTER_AUTH else [subject])


@given(st.sampled_from(COLUMNS), st.sampled_from(["bytea", "numeric(10,2)", "text[]", "interval"]))
def test_any_foreign_type_is_harmful_and_named(case: tuple[Database, Table, Column], kind: str) -> None:
    database, table, column = case
    changed = FoundColumn(column.name, kind, column.nullable, column.default)
    assert harmful(differences(database, with_column(database, table, changed))) == [f"{table.name}.{column.name}"]


@given(st.sampled_from([(d, t, c, other) for d, t, c in COLUMNS for other in c.type.also]))
def test_any_equivalent_type_is_harmless(case: tuple[Database, Table, Column, str]) -> None:
    database, table, column, kind = case
    changed = FoundColumn(column.name, kind, column.nullable, column.default)
    findings = differences(database, with_column(database, table, changed))
    assert harmful(findings) == []
    assert [f.found for f in findings if f.severity is Severity.HARMLESS] == [kind]


@given(st.sampled_from(FOREIGN_KEYS), st.sampled_from(OnDelete))
def test_any_other_deletion_rule_is_harmful(case: tuple[Database, Table, ForeignKey], rule: OnDelete) -> None:
    database, table, key = case
    whole = found_table(database, table.name)
    keys = tuple(replace(k, on_delete=rule) if k.columns == (key.column,) else k for k in whole.foreign_keys)
    findings = differences(database, with_table(conforming(database), replace(whole, foreign_keys=keys)))
    same = rule is key.on_delete or {rule, key.on_delete} == {OnDelete.RESTRICT, OnDelete.NO_ACTION}
    assert harmful(findings) == ([] if same else [f"{key.table}.{key.column}"])


@given(st.sampled_from(FOREIGN_KEYS))
def test_any_missing_foreign_key_is_harmful_with_the_statement_that_mends_it(
    case: tuple[Database, Table, ForeignKey],
) -> None:
    database, table, key = case
    whole = found_table(database, table.name)
    keys = tuple(k for k in whole.foreign_keys if k.columns != (key.column,))
    findings = differences(database, with_table(conforming(database), replace(whole, foreign_keys=keys)))
    (drift,) = [finding for finding in findings if finding.severity is Severity.HARMFUL]
    assert drift.subject == f"{key.table}.{key.column}"
    assert key.name in drift.mend


@pytest.mark.parametrize(
    ("given_url", "expected"),
    [
        ("postgresql://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        ("postgres://u@h/d", "postgresql://u@h/d"),
        ("postgresql+psycopg://u@/d?host=/run/pg", "postgresql://u@/d?host=/run/pg"),
        ("postgresql+psycopg2://u@/d", "postgresql://u@/d"),
    ],
)
def test_urls_lose_the_name_of_their_driver(given_url: str, expected: str) -> None:
    assert libpq_url(given_url) == expected


def test_another_url_is_refused_without_being_quoted() -> None:
    with pytest.raises(ConfigurationError) as raised:
        libpq_url("mysql://u:secret@h/d")
    assert "secret" not in str(raised.value)


def test_a_url_as_another_role_keeps_server_and_database_and_drops_the_password() -> None:
    url = as_role("postgresql+psycopg://someone:secret@/fltr_auth?host=%2Frun%2Fpg&port=5433", "postgres")
    assert url == "postgresql://postgres@/fltr_auth?host=%2Frun%2Fpg&port=5433"
