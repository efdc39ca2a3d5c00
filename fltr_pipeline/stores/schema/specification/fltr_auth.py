"""Database `fltr_auth`, the web application's: its ten tables, as far as the specification and its makers say.

Belongs here: the target state of its schema `public`, and what the pipeline writes there. Does not: anything of ours.

Where the specification is silent on a type, a default or nullability, the conventions of Better Auth and Drizzle fill
in.
"""

from fltr_pipeline.models import Op
from fltr_pipeline.stores.schema.specification.terms import (
    BIGINT,
    BOOLEAN,
    IDENTIFIER,
    INTEGER,
    JSON,
    LONG_TEXT,
    SERIAL,
    TEXT,
    TIMESTAMP,
    WORD,
    WRITTEN_ID,
    WRITTEN_TIME,
    Database,
    ForeignKey,
    OnDelete,
    Source,
    Table,
    Written,
    column,
    columns,
)

_SPEC, _AUTH, _STRIPE = Source.SPECIFICATION, Source.BETTER_AUTH, Source.BETTER_AUTH_STRIPE
_SQL, _DRIZZLE = Source.MIGRATION, Source.DRIZZLE

_AUTH_ID = column("id", IDENTIFIER, of=_SPEC, typed=_AUTH)
_AUTH_TIMES = tuple(
    column(name, TIMESTAMP, of=_SPEC, typed=_AUTH, default="now()") for name in ("created_at", "updated_at")
)
_CREDIT_ID = column("id", IDENTIFIER, of=_SPEC, typed=_DRIZZLE)
_CREDIT_TIMES = tuple(
    column(name, TIMESTAMP, of=_SPEC, typed=_DRIZZLE, default="now()") for name in ("created_at", "updated_at")
)
_CREDITS = column("credits", INTEGER, of=_SPEC, typed=_DRIZZLE, default="0")


# A balance falls to 0 at the least.
_BALANCE: Written = {"credits": 0, "updated_at": WRITTEN_TIME}

_ENTRIES = (
    *((kind, amount, op.value) for op in Op for kind, amount in (("usage", -1), ("usage", 0), ("refund", 1))),
    ("bonus", 1, "grant"),
    ("bonus", 0, "opening"),
)
"""Type, amount and operation of the ledger's rows: holds, closes and voids, grants, openings."""


def _entry(kind: str, amount: int, operation: str) -> Written:
    ids = dict.fromkeys(("id", "user_id", "team_id", "resource_id"), WRITTEN_ID)
    row = {"type": kind, "amount": amount, "operation": operation, "api_key_id": "0" * 64, "created_at": WRITTEN_TIME}
    return {**ids, **row, "transaction_metadata": {"version": 1}}


def _owned(table: str, column: str = "user_id") -> ForeignKey:
    return ForeignKey(table, column, "users", OnDelete.CASCADE)


_USERS = Table(
    name="users",
    primary_key="id",
    columns=(
        _AUTH_ID,
        column("name", TEXT, of=_SPEC, typed=_AUTH),
        column("email", TEXT, of=_SPEC, typed=_AUTH),
        column("email_verified", BOOLEAN, of=_SPEC, typed=_AUTH, default="false"),
        column("image", LONG_TEXT, of=_SPEC, typed=_AUTH, nullable=True),
        *columns("avatar avatar_url", LONG_TEXT, of=_SPEC, typed=_DRIZZLE),
        *_AUTH_TIMES,
        column("stripe_customer_id", TEXT, of=_SPEC, typed=_STRIPE, nullable=True),
    ),
    unique=("email",),
    forbidden=("credits", "total_credits_purchased", "team_id"),
)

_SESSIONS = Table(
    name="sessions",
    primary_key="id",
    columns=(
        _AUTH_ID,
        *columns("user_id", IDENTIFIER, of=_SPEC, typed=_AUTH, nullable=False),
        *columns("token", TEXT, of=_SPEC, typed=_AUTH, nullable=False),
        *columns("expires_at", TIMESTAMP, of=_SPEC, typed=_AUTH, nullable=False),
        *_AUTH_TIMES,
        *columns("ip_address user_agent", TEXT, of=_SPEC, typed=_AUTH),
    ),
    unique=("token",),
    foreign_keys=(_owned("sessions"),),
)

_ACCOUNTS = Table(
    name="accounts",
    primary_key="id",
    columns=(
        _AUTH_ID,
        *columns("user_id", IDENTIFIER, of=_SPEC, typed=_AUTH, nullable=False),
        *columns("account_id provider_id", TEXT, of=_SPEC, typed=_AUTH, nullable=False),
        *columns("access_token refresh_token", TEXT, of=_SPEC, typed=_AUTH),
        *columns("id_token", TEXT, of=_AUTH, typed=_AUTH),
        *columns("access_token_expires_at refresh_token_expires_at", TIMESTAMP, of=_AUTH, typed=_AUTH),
        *columns("scope password", TEXT, of=_AUTH, typed=_AUTH),
        *_AUTH_TIMES,
    ),
    foreign_keys=(_owned("accounts"),),
)

_VERIFICATIONS = Table(
    name="verifications",
    primary_key="id",
    columns=(
        _AUTH_ID,
        *columns("identifier value", TEXT, of=_SPEC, typed=_AUTH, nullable=False),
        *columns("expires_at", TIMESTAMP, of=_SPEC, typed=_AUTH, nullable=False),
        *_AUTH_TIMES,
    ),
)

_SUBSCRIPTIONS = Table(
    name="subscriptions",
    primary_key="id",
    columns=(
        _AUTH_ID,
        *columns("plan reference_id", TEXT, of=_SPEC, typed=_STRIPE, nullable=False),
        *columns("stripe_customer_id stripe_subscription_id", TEXT, of=_SPEC, typed=_STRIPE),
        column("status", TEXT, of=_SPEC, typed=_STRIPE, nullable=True, default="'incomplete'::text"),
        *columns("period_start period_end", TIMESTAMP, of=_SPEC, typed=_STRIPE),
        column("cancel_at_period_end", BOOLEAN, of=_SPEC, typed=_STRIPE, nullable=True, default="false"),
        *columns("seats", INTEGER, of=_SPEC, typed=_STRIPE),
        *columns("trial_start trial_end", TIMESTAMP, of=_SPEC, typed=_STRIPE),
    ),
)

_TEAMS = Table(
    name="teams",
    primary_key="id",
    columns=(
        _CREDIT_ID,
        column("name", TEXT, of=_SPEC, typed=_DRIZZLE),
        _CREDITS,
        column("owner_id", IDENTIFIER, of=_SPEC, typed=_DRIZZLE),
        *_CREDIT_TIMES,
    ),
    foreign_keys=(_owned("teams", "owner_id"),),
    writes=(_BALANCE,),
)

_USER_CREDITS = Table(
    name="user_credits",
    primary_key="user_id",
    columns=(
        column("user_id", IDENTIFIER, of=_SQL, typed=_SQL),
        column("credits", INTEGER, of=_SQL, typed=_SQL, default="0"),
        column("total_credits_purchased", INTEGER, of=_SQL, typed=_SQL, default="0"),
        column("team_id", IDENTIFIER, of=_SQL, typed=_SQL, nullable=True),
        column("created_at", TIMESTAMP, of=_SQL, typed=_SQL, default="now()"),
        column("updated_at", TIMESTAMP, of=_SQL, typed=_SQL, default="now()"),
    ),
    # No ON DELETE on team_id: a team can't be deleted while balances point at it.
    foreign_keys=(_owned("user_credits"), ForeignKey("user_credits", "team_id", "teams", OnDelete.NO_ACTION, _SQL)),
    writes=(_BALANCE,),
)

_CREDIT_TRANSACTIONS = Table(
    name="credit_transactions",
    primary_key="id",
    columns=(
        _CREDIT_ID,
        column("user_id", IDENTIFIER, of=_SPEC, typed=_DRIZZLE),
        column("team_id", IDENTIFIER, of=_SPEC, typed=_SPEC, nullable=True),
        column("amount", INTEGER, of=_SPEC, typed=_DRIZZLE),
        column("type", WORD, of=_SPEC, typed=_DRIZZLE),
        *columns("operation resource_id api_key_id", TEXT, of=_SPEC, typed=_DRIZZLE),
        column("transaction_metadata", JSON, of=_SPEC, typed=_SPEC, nullable=True),
        _CREDIT_TIMES[0],
    ),
    foreign_keys=(
        _owned("credit_transactions"),
        ForeignKey("credit_transactions", "team_id", "teams", OnDelete.SET_NULL),
    ),
    inserted=True,
    writes=tuple(_entry(*entry) for entry in _ENTRIES),
)

_API_KEY_CREDITS = Table(
    name="api_key_credits",
    primary_key="api_key",
    columns=(
        column("api_key", TEXT, of=_SPEC, typed=_DRIZZLE),
        column("user_id", IDENTIFIER, of=_SPEC, typed=_DRIZZLE),
        column("team_id", IDENTIFIER, of=_SPEC, typed=_DRIZZLE, nullable=True),
        _CREDITS,
        *columns("daily_limit monthly_limit", INTEGER, of=_SPEC, typed=_DRIZZLE),
        *_CREDIT_TIMES,
    ),
    foreign_keys=(_owned("api_key_credits"), ForeignKey("api_key_credits", "team_id", "teams", OnDelete.CASCADE)),
    writes=(_BALANCE,),
)

_JOURNAL = Table(
    name="__drizzle_migrations",
    primary_key="id",
    columns=(
        column("id", INTEGER, of=_SQL, typed=_SQL, default=SERIAL),
        column("hash", TEXT, of=_SQL, typed=_SQL),
        column("created_at", BIGINT, of=_SQL, typed=_SQL, nullable=True),
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
