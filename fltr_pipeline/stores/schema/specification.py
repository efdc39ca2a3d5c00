"""What both databases must look like, as data: tables, columns, keys, foreign keys, and the source of each fact.

Belongs here: the target state. Does not: SQL text (`ddl`), reading a live database (`catalog`), judging it (`compare`).

"The specification" is the product's document on the expected and actual schemas: tables, columns, keys, and what a
deletion does. Where it is silent on a type, a default or nullability, the conventions of Better Auth and Drizzle fill
in for `fltr_auth`, and our own choice for `fltr`. There are no CHECK constraints: whoever else creates these tables has
none, and the words of a status live in `models`.
"""

from dataclasses import dataclass
from enum import StrEnum

from fltr_pipeline.models import DocumentStatus, JobStatus


class Source(StrEnum):
    """Where a fact comes from."""

    SPECIFICATION = "the specification's table list"
    MIGRATION = "the specification's migration SQL"
    BETTER_AUTH = "Better Auth's core schema"
    BETTER_AUTH_STRIPE = "the schema of Better Auth's Stripe plugin"
    DRIZZLE = "Drizzle's PostgreSQL convention"
    OURS = "this project's choice"


class OnDelete(StrEnum):
    """What the deletion of the referenced row does."""

    CASCADE = "CASCADE"
    SET_NULL = "SET NULL"
    SET_DEFAULT = "SET DEFAULT"
    RESTRICT = "RESTRICT"
    NO_ACTION = "NO ACTION"


@dataclass(frozen=True, slots=True)
class Type:
    """A column's type, as `format_type` spells it, and the others that serve as well."""

    sql: str
    also: tuple[str, ...] = ()
    limit_allowed: bool = True
    """Whether `varchar(n)` will do in place of `text`."""


IDENTIFIER = Type("text", also=("uuid", "character varying"))
TEXT = Type("text", also=("character varying",))
LONG_TEXT = Type("text", also=("character varying",), limit_allowed=False)
INTEGER = Type("integer", also=("bigint",))
BIGINT = Type("bigint")
BOOLEAN = Type("boolean")
JSON = Type("json", also=("jsonb",))
TIMESTAMP = Type("timestamp without time zone", also=("timestamp with time zone",))
TIMESTAMPTZ = Type("timestamp with time zone", also=("timestamp without time zone",))


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `source` names it, `type_source` says where type, nullability and default come from."""

    name: str
    type: Type
    nullable: bool
    default: str | None
    """As `pg_get_expr` spells it; `SERIAL` for a sequence of the column's own."""
    source: Source
    type_source: Source


SERIAL = "nextval"


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key of one column onto another table's `id`."""

    table: str
    column: str
    target: str
    on_delete: OnDelete
    source: Source = Source.SPECIFICATION
    target_column: str = "id"

    @property
    def name(self) -> str:
        """The constraint's name, as Drizzle makes it."""
        return f"{self.table}_{self.column}_{self.target}_{self.target_column}_fk"


@dataclass(frozen=True, slots=True)
class Index:
    """An index that we add; nobody else needs it, so its absence is slow rather than wrong."""

    name: str
    columns: str
    where: str | None = None
    source: Source = Source.OURS


@dataclass(frozen=True, slots=True)
class Table:
    """A table. `unique` holds columns that are unique on their own; `rows` are the literal rows of a fresh copy."""

    name: str
    primary_key: str
    columns: tuple[Column, ...]
    unique: tuple[str, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    indexes: tuple[Index, ...] = ()
    rows: tuple[tuple[str, int], ...] = ()
    """Of `(hash, created_at)`: only Drizzle's journal has any."""
    written: bool = False
    """Whether the pipeline inserts rows, so that a column that suddenly demands a value breaks it."""
    forbidden: tuple[str, ...] = ()
    """Columns that the specification says must not be here."""
    source: Source = Source.SPECIFICATION


@dataclass(frozen=True, slots=True)
class Database:
    """A database's schema `public`. `closed`: it holds these tables and columns and nothing else, ever."""

    name: str
    closed: bool
    tables: tuple[Table, ...]

    def table(self, name: str) -> Table:
        """The table of this name, which must exist."""
        return next(table for table in self.tables if table.name == name)


def _columns(names: str, kind: Type, *, of: Source, typed: Source, nullable: bool = True) -> tuple[Column, ...]:
    return tuple(Column(name, kind, nullable, None, of, typed) for name in names.split())


def _column(
    name: str, kind: Type, *, of: Source, typed: Source, nullable: bool = False, default: str | None = None
) -> Column:
    return Column(name, kind, nullable, default, of, typed)


# --- fltr -------------------------------------------------------------------------------------------------------------


def _ours(name: str, kind: Type, *, nullable: bool = False, default: str | None = None) -> Column:
    return Column(name, kind, nullable, default, Source.SPECIFICATION, Source.OURS)


_NEW_ID = "(gen_random_uuid())::text"
_OUR_ID = _ours("id", IDENTIFIER, default=_NEW_ID)
_OUR_TIMES = (_ours("created_at", TIMESTAMPTZ, default="now()"), _ours("updated_at", TIMESTAMPTZ, default="now()"))

FLTR = Database(
    name="fltr",
    closed=True,
    tables=(
        Table(
            name="datasets",
            primary_key="id",
            columns=(
                _OUR_ID,
                # Refers to fltr_auth.users.id. No constraint can cross databases: each run checks the owner instead.
                _ours("user_id", IDENTIFIER),
                _ours("name", TEXT),
                _ours("description", LONG_TEXT, nullable=True),
                *_OUR_TIMES,
            ),
            indexes=(Index("datasets_user_id_idx", "user_id"),),
            written=True,
        ),
        Table(
            name="documents",
            primary_key="id",
            columns=(
                _OUR_ID,
                _ours("dataset_id", IDENTIFIER),
                _ours("filename", TEXT),
                _ours("content", LONG_TEXT, nullable=True),
                _ours("status", TEXT, default=f"'{DocumentStatus.UPLOADED}'::text"),
                *_OUR_TIMES,
            ),
            foreign_keys=(ForeignKey("documents", "dataset_id", "datasets", OnDelete.CASCADE),),
            indexes=(
                Index("documents_dataset_id_idx", "dataset_id"),
                Index(
                    "documents_waiting_idx",
                    "dataset_id, created_at, id",
                    where=f"status = '{DocumentStatus.UPLOADED}'",
                ),
            ),
            written=True,
        ),
        Table(
            name="processing_jobs",
            primary_key="id",
            columns=(
                _OUR_ID,
                _ours("document_id", IDENTIFIER),
                _ours("status", TEXT, default=f"'{JobStatus.QUEUED}'::text"),
                *_OUR_TIMES,
            ),
            foreign_keys=(ForeignKey("processing_jobs", "document_id", "documents", OnDelete.CASCADE),),
            indexes=(Index("processing_jobs_document_id_idx", "document_id"),),
            written=True,
        ),
    ),
)


# --- fltr_auth --------------------------------------------------------------------------------------------------------

_SPEC, _AUTH, _STRIPE = Source.SPECIFICATION, Source.BETTER_AUTH, Source.BETTER_AUTH_STRIPE
_SQL, _DRIZZLE = Source.MIGRATION, Source.DRIZZLE

_AUTH_ID = _column("id", IDENTIFIER, of=_SPEC, typed=_AUTH)
_AUTH_TIMES = tuple(
    _column(name, TIMESTAMP, of=_SPEC, typed=_AUTH, default="now()") for name in ("created_at", "updated_at")
)
_CREDIT_ID = _column("id", IDENTIFIER, of=_SPEC, typed=_DRIZZLE)
_CREDIT_TIMES = tuple(
    _column(name, TIMESTAMP, of=_SPEC, typed=_DRIZZLE, default="now()") for name in ("created_at", "updated_at")
)
_CREDITS = _column("credits", INTEGER, of=_SPEC, typed=_DRIZZLE, default="0")


def _owned(table: str, column: str = "user_id") -> ForeignKey:
    return ForeignKey(table, column, "users", OnDelete.CASCADE)


_USERS = Table(
    name="users",
    primary_key="id",
    columns=(
        _AUTH_ID,
        _column("name", TEXT, of=_SPEC, typed=_AUTH),
        _column("email", TEXT, of=_SPEC, typed=_AUTH),
        _column("email_verified", BOOLEAN, of=_SPEC, typed=_AUTH, default="false"),
        _column("image", LONG_TEXT, of=_SPEC, typed=_AUTH, nullable=True),
        *_columns("avatar avatar_url", LONG_TEXT, of=_SPEC, typed=_DRIZZLE),
        *_AUTH_TIMES,
        _column("stripe_customer_id", TEXT, of=_SPEC, typed=_STRIPE, nullable=True),
    ),
    unique=("email",),
    forbidden=("credits", "total_credits_purchased", "team_id"),
)

_SESSIONS = Table(
    name="sessions",
    primary_key="id",
    columns=(
        _AUTH_ID,
        *_columns("user_id", IDENTIFIER, of=_SPEC, typed=_AUTH, nullable=False),
        *_columns("token", TEXT, of=_SPEC, typed=_AUTH, nullable=False),
        *_columns("expires_at", TIMESTAMP, of=_SPEC, typed=_AUTH, nullable=False),
        *_AUTH_TIMES,
        *_columns("ip_address user_agent", TEXT, of=_SPEC, typed=_AUTH),
    ),
    unique=("token",),
    foreign_keys=(_owned("sessions"),),
)

_ACCOUNTS = Table(
    name="accounts",
    primary_key="id",
    columns=(
        _AUTH_ID,
        *_columns("user_id", IDENTIFIER, of=_SPEC, typed=_AUTH, nullable=False),
        *_columns("account_id provider_id", TEXT, of=_SPEC, typed=_AUTH, nullable=False),
        *_columns("access_token refresh_token", TEXT, of=_SPEC, typed=_AUTH),
        *_columns("id_token", TEXT, of=_AUTH, typed=_AUTH),
        *_columns("access_token_expires_at refresh_token_expires_at", TIMESTAMP, of=_AUTH, typed=_AUTH),
        *_columns("scope password", TEXT, of=_AUTH, typed=_AUTH),
        *_AUTH_TIMES,
    ),
    foreign_keys=(_owned("accounts"),),
)

_VERIFICATIONS = Table(
    name="verifications",
    primary_key="id",
    columns=(
        _AUTH_ID,
        *_columns("identifier value", TEXT, of=_SPEC, typed=_AUTH, nullable=False),
        *_columns("expires_at", TIMESTAMP, of=_SPEC, typed=_AUTH, nullable=False),
        *_AUTH_TIMES,
    ),
)

_SUBSCRIPTIONS = Table(
    name="subscriptions",
    primary_key="id",
    columns=(
        _AUTH_ID,
        *_columns("plan reference_id", TEXT, of=_SPEC, typed=_STRIPE, nullable=False),
        *_columns("stripe_customer_id stripe_subscription_id", TEXT, of=_SPEC, typed=_STRIPE),
        _column("status", TEXT, of=_SPEC, typed=_STRIPE, nullable=True, default="'incomplete'::text"),
        *_columns("period_start period_end", TIMESTAMP, of=_SPEC, typed=_STRIPE),
        _column("cancel_at_period_end", BOOLEAN, of=_SPEC, typed=_STRIPE, nullable=True, default="false"),
        *_columns("seats", INTEGER, of=_SPEC, typed=_STRIPE),
        *_columns("trial_start trial_end", TIMESTAMP, of=_SPEC, typed=_STRIPE),
    ),
)

_TEAMS = Table(
    name="teams",
    primary_key="id",
    columns=(
        _CREDIT_ID,
        _column("name", TEXT, of=_SPEC, typed=_DRIZZLE),
        _CREDITS,
        _column("owner_id", IDENTIFIER, of=_SPEC, typed=_DRIZZLE),
        *_CREDIT_TIMES,
    ),
    foreign_keys=(_owned("teams", "owner_id"),),
)

_USER_CREDITS = Table(
    name="user_credits",
    primary_key="user_id",
    columns=(
        _column("user_id", IDENTIFIER, of=_SQL, typed=_SQL),
        _column("credits", INTEGER, of=_SQL, typed=_SQL, default="0"),
        _column("total_credits_purchased", INTEGER, of=_SQL, typed=_SQL, default="0"),
        _column("team_id", IDENTIFIER, of=_SQL, typed=_SQL, nullable=True),
        _column("created_at", TIMESTAMP, of=_SQL, typed=_SQL, default="now()"),
        _column("updated_at", TIMESTAMP, of=_SQL, typed=_SQL, default="now()"),
    ),
    # No ON DELETE on team_id: a team can't be deleted while balances point at it.
    foreign_keys=(_owned("user_credits"), ForeignKey("user_credits", "team_id", "teams", OnDelete.NO_ACTION, _SQL)),
)

_CREDIT_TRANSACTIONS = Table(
    name="credit_transactions",
    primary_key="id",
    columns=(
        _CREDIT_ID,
        _column("user_id", IDENTIFIER, of=_SPEC, typed=_DRIZZLE),
        _column("team_id", IDENTIFIER, of=_SPEC, typed=_SPEC, nullable=True),
        _column("amount", INTEGER, of=_SPEC, typed=_DRIZZLE),
        _column("type", TEXT, of=_SPEC, typed=_DRIZZLE),
        *_columns("operation resource_id api_key_id", TEXT, of=_SPEC, typed=_DRIZZLE),
        _column("transaction_metadata", JSON, of=_SPEC, typed=_SPEC, nullable=True),
        _CREDIT_TIMES[0],
    ),
    foreign_keys=(
        _owned("credit_transactions"),
        ForeignKey("credit_transactions", "team_id", "teams", OnDelete.SET_NULL),
    ),
    written=True,
)

_API_KEY_CREDITS = Table(
    name="api_key_credits",
    primary_key="api_key",
    columns=(
        _column("api_key", TEXT, of=_SPEC, typed=_DRIZZLE),
        _column("user_id", IDENTIFIER, of=_SPEC, typed=_DRIZZLE),
        _column("team_id", IDENTIFIER, of=_SPEC, typed=_DRIZZLE, nullable=True),
        _CREDITS,
        *_columns("daily_limit monthly_limit", INTEGER, of=_SPEC, typed=_DRIZZLE),
        *_CREDIT_TIMES,
    ),
    foreign_keys=(_owned("api_key_credits"), ForeignKey("api_key_credits", "team_id", "teams", OnDelete.CASCADE)),
)

_JOURNAL = Table(
    name="__drizzle_migrations",
    primary_key="id",
    columns=(
        _column("id", INTEGER, of=_SQL, typed=_SQL, default=SERIAL),
        _column("hash", TEXT, of=_SQL, typed=_SQL),
        _column("created_at", BIGINT, of=_SQL, typed=_SQL, nullable=True),
    ),
    rows=(
        ("0baa8af38816a34b1e4470ba4ee5a49a5e0e4a8c1d5e1fde83f26f2b1be57c4b", 1760114263106),
        ("38f04f0b6c736ed30fee6e7d77f08e97c3f2a4f0dc85f5426a3b5bd1dd859f53", 1761915734970),
        ("e3c7a8f2c09fc8ad3e0d5b64f1a8e7c4b2f9a8e1d0c5b3a4f2e8d7c6b5a4e3f2", 1762369692832),
    ),
    source=_SQL,
)

FLTR_AUTH = Database(
    name="fltr_auth",
    closed=False,
    tables=(
        _USERS,
        _SESSIONS,
        _ACCOUNTS,
        _VERIFICATIONS,
        _SUBSCRIPTIONS,
        _TEAMS,
        _USER_CREDITS,
        _CREDIT_TRANSACTIONS,
        _API_KEY_CREDITS,
        _JOURNAL,
    ),
)
