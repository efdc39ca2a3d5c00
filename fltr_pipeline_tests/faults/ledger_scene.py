"""What a machine plays on: two databases, a clock, faults at COMMIT, and the application beside the ledger.

Belongs here: setting a scene, what the application does to it by SQL, and reading everything back. Does not: what must
be there (ledger_model, billing_model).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import Engine

from fltr_pipeline.credits import ledger
from fltr_pipeline.credits.holds import Pot, key_digest
from fltr_pipeline.models import Op
from fltr_pipeline.pipeline.billing import ChargeKey
from fltr_pipeline.stores.auth import pots, rows
from fltr_pipeline.stores.database import engine_for
from fltr_pipeline.stores.schema import AUTH_ROLE
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline_tests.faults.billing_model import TOKENS, ChargeRow, Document
from fltr_pipeline_tests.faults.ledger_model import LedgerModel, Limits, Row, View

BEGINNING = datetime(2025, 1, 29, 12)  # noqa: DTZ001 - as the columns hold it; a month ends soon
_TABLES = {"user": ("user_credits", "user_id"), "team": ("teams", "id"), "api_key": ("api_key_credits", "api_key")}

_LOOK = """
    SELECT 'user:' || user_id, credits FROM user_credits UNION ALL SELECT 'team:' || id, credits FROM teams
    UNION ALL SELECT 'api_key:' || encode(sha256(api_key::bytea), 'hex'), credits FROM api_key_credits;
    SELECT id, user_id, amount, type, created_at, transaction_metadata::text FROM credit_transactions
"""

_LOOK_AT_FLTR = """
    SELECT subject_id, op, generation, sequence, amount, unit_price, pot_kind || ':' || pot_id, state, charged
    FROM pipeline.charges;
    SELECT d.id, coalesce(p.generation, 0), p.stage, coalesce(p.fence, 0), p.lease_until IS NOT NULL,
           coalesce(p.lease_until < now(), false), p.credits_needed IS NOT NULL, p.live_generation, d.status,
           coalesce(g.state = 'indexed', false), coalesce(g.state <> 'live', false)
    FROM public.documents d
    LEFT JOIN pipeline.documents p ON p.document_id = d.id
    LEFT JOIN pipeline.generations g ON g.document_id = d.id AND g.generation = p.generation
"""


class Fate(StrEnum):
    """What becomes of one COMMIT."""

    DIES_BEFORE = "the process dies before it"
    DIES_AFTER = "the process dies after it, before it knows"
    ABORTED = "the server does not do it; the process lives"
    UNANSWERED = "the server does it, its answer is lost; the process lives"

    @property
    def deadly(self) -> bool:
        """Whether the call ends there."""
        return self in {Fate.DIES_BEFORE, Fate.DIES_AFTER}


class Crashed(Exception):
    """The process died here."""


@dataclass
class Faults:
    """Counts the COMMITs of some engines and lets one of them fail."""

    engines: tuple[Engine, ...]
    _fate: Fate | None = None
    _left: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on."""
        for engine in self.engines:
            monkeypatch.setattr(engine.dialect, "do_commit", self._wrapped(engine.dialect.do_commit))

    @contextmanager
    def planned(self, fate: Fate | None, nth: int) -> Iterator[None]:
        """Within, the nth COMMIT has this fate."""
        self._fate, self._left = fate, nth
        try:
            yield
        finally:
            self._fate = None

    def _wrapped(self, commit: Callable[[Any], None]) -> Callable[[Any], None]:
        def wrapper(connection: Any) -> None:
            self._left -= 1
            fate = self._fate if self._left == 0 else None
            if fate is Fate.DIES_BEFORE:
                raise Crashed
            if fate is Fate.ABORTED:
                raise psycopg.OperationalError("aborted by the test")
            commit(connection)
            if fate is Fate.DIES_AFTER:
                raise Crashed
            if fate is Fate.UNANSWERED:
                raise psycopg.OperationalError("the answer is lost, by the test")

        return wrapper


@dataclass
class Clock:
    """The ledger's."""

    now: datetime = BEGINNING

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on."""
        for module in (rows, pots):
            monkeypatch.setattr(module, "utc_now", lambda: self.now)
        monkeypatch.setattr(ledger, "time", self)

    def sleep(self, _: float) -> None:
        """Nobody waits before trying again."""


@dataclass
class Scene:
    """Both databases, for the whole session, as the roles that the pipeline has; and as their owner."""

    fltr_admin: str
    auth_admin: str
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        for url in (self.fltr_admin, self.auth_admin):
            with psycopg.connect(url, autocommit=True) as connection:
                name = sql.Identifier(connection.info.dbname)
                connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
        self.fltr = engine_for(SecretStr(self.fltr_admin))
        self.auth = engine_for(SecretStr(as_role(self.auth_admin, AUTH_ROLE)))
        self.application = psycopg.connect(self.auth_admin, autocommit=True)
        self.uploads = psycopg.connect(self.fltr_admin, autocommit=True)
        self.faults = Faults((self.fltr, self.auth))

    def close(self) -> None:
        """Give all connections back."""
        self.application.close()
        self.uploads.close()
        self.fltr.dispose()
        self.auth.dispose()

    def begin(self) -> LedgerModel:
        """An empty world, and its model."""
        self.application.execute("TRUNCATE users CASCADE")
        self.uploads.execute(
            "TRUNCATE public.datasets, pipeline.documents, pipeline.generations, pipeline.charges CASCADE"
        )
        self.clock.now = BEGINNING
        return LedgerModel(BEGINNING)

    def look(self) -> View:
        """Everything that is in `fltr_auth`."""
        cursor = self.application.execute(_LOOK)
        balances: dict[str, int] = dict(cursor.fetchall())
        cursor.nextset()
        found = {row_id: _row(*rest) for row_id, *rest in cursor.fetchall()}
        grants = Counter(r for r in found.values() if r.kind == "grant")
        return View(balances, {i: r for i, r in found.items() if r.kind != "grant"}, grants)

    def look_at_fltr(self) -> tuple[dict[ChargeKey, ChargeRow], dict[str, Document]]:
        """Everything that is in `fltr`."""
        cursor = self.uploads.execute(_LOOK_AT_FLTR)
        charges = {(i, Op(op), n): ChargeRow(*rest) for i, op, n, *rest in cursor.fetchall()}
        cursor.nextset()
        return charges, {i: Document(*rest) for i, *rest in cursor.fetchall()}

    # The application, in the database and in the model -------------------------------------------------------------

    def sign_up(self, model: LedgerModel, user: str, credits: int) -> None:
        """A user with a balance that no row explains."""
        self.application.execute(
            "WITH u AS (INSERT INTO users (id, name, email) VALUES (%(id)s, %(id)s, %(id)s) RETURNING id)"
            " INSERT INTO user_credits (user_id, credits) SELECT id, %(credits)s FROM u",
            {"id": user, "credits": credits},
        )
        model.teams_of[user] = None
        _add(model, Pot("user", user), user, credits)

    def found_team(self, model: LedgerModel, team: str, owner: str, members: list[str], credits: int) -> None:
        """A team that pays for these users."""
        self.application.execute(
            "INSERT INTO teams (id, name, credits, owner_id) VALUES (%s, 'T', %s, %s)", (team, credits, owner)
        )
        self.application.execute("UPDATE user_credits SET team_id = %s WHERE user_id = ANY(%s)", (team, members))
        model.teams_of |= dict.fromkeys(members, team)
        _add(model, Pot("team", team), owner, credits)

    def issue_key(self, model: LedgerModel, key: str, owner: str, credits: int, limits: Limits) -> None:
        """An API key with a pool."""
        self.application.execute(
            "INSERT INTO api_key_credits (api_key, user_id, credits, daily_limit, monthly_limit)"
            " VALUES (%s, %s, %s, %s, %s)", (key, owner, credits, *limits),
        )  # fmt: skip
        pot = Pot("api_key", key_digest(key))
        model.limits[pot] = limits
        _add(model, pot, owner, credits)

    def other(self, model: LedgerModel, pot: Pot, user: str, amount: int, key: str | None) -> None:
        """A purchase or usage: a relative update and a row without our metadata, in one transaction."""
        row_id = f"other-{len(model.meant)}"
        row = (row_id, user, pot.id if pot.kind == "team" else None, amount, "purchase" if amount > 0 else "usage",
               key, self.clock.now)  # fmt: skip
        with self.application.transaction():
            self.application.execute(
                "INSERT INTO credit_transactions (id, user_id, team_id, amount, type, api_key_id, created_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)", row
            )  # fmt: skip
            self._update(pot, "SET credits = credits + %s", amount, key)
        model.other(row_id, user, pot, amount)

    def delete_user(self, model: LedgerModel, user: str) -> None:
        """Their teams' members pay by themselves first: the schema demands it."""
        with self.application.transaction():
            self.application.execute(
                "UPDATE user_credits SET team_id = NULL WHERE team_id IN (SELECT id FROM teams WHERE owner_id = %s)",
                (user,),
            )
            self.application.execute("DELETE FROM users WHERE id = %s", (user,))
        model.delete_user(user)

    def delete_pot(self, model: LedgerModel, pot: Pot, key: str | None) -> None:
        """A team, an API key's pool, or a user's balance while the user stays."""
        table, column = _TABLES[pot.kind]
        with self.application.transaction():
            if pot.kind == "team":
                self.application.execute("UPDATE user_credits SET team_id = NULL WHERE team_id = %s", (pot.id,))
            delete = sql.SQL("DELETE FROM {} WHERE {} = %s").format(sql.Identifier(table), sql.Identifier(column))
            self.application.execute(delete, (key or pot.id,))
        model.delete_pot(pot)

    def a_day_passes(self, model: LedgerModel) -> None:
        """Daily limits begin anew, monthly ones every now and then."""
        self.clock.now += timedelta(days=1)
        model.now = self.clock.now

    def upload(self, document: str) -> None:
        """A new input; each document has a dataset of its own, so that a claim takes that one."""
        self.uploads.execute(
            "INSERT INTO datasets (id, user_id, name) VALUES (%(id)s, 'ada', 'd') ON CONFLICT DO NOTHING",
            {"id": document},
        )
        self.uploads.execute(
            "INSERT INTO documents (id, dataset_id, filename, status) VALUES (%(id)s, %(id)s, 'f', 'uploaded')"
            " ON CONFLICT (id) DO UPDATE SET status = 'uploaded', updated_at = clock_timestamp()", {"id": document},
        )  # fmt: skip

    def extracted(self, document: str, generation: int) -> None:
        """What the stages before embedding leave."""
        self.uploads.execute(
            "INSERT INTO pipeline.generations (document_id, generation, state, extractor, source_sha256, source_bytes,"
            " kind, engine, text, text_sha256, pages, fresh_tokens)"
            " VALUES (%s, %s, 'planned', '', '', 1, 'pdf', '', 'text', '', 1, %s) ON CONFLICT DO NOTHING",
            (document, generation, TOKENS),
        )

    def lease_runs_out(self, document: str) -> None:
        """Its worker has not been heard of."""
        self.uploads.execute(
            "UPDATE pipeline.documents SET lease_until = now() - interval '1 hour', retry_at = NULL"
            " WHERE document_id = %s AND lease_until IS NOT NULL", (document,),
        )  # fmt: skip

    def delete_document(self, document: str) -> None:
        """With what `fltr` knows of it, but for its charges."""
        self.uploads.execute("DELETE FROM documents WHERE id = %s", (document,))
        self.uploads.execute("DELETE FROM pipeline.documents WHERE document_id = %s", (document,))
        self.uploads.execute("DELETE FROM pipeline.generations WHERE document_id = %s", (document,))

    def _update(self, pot: Pot, change: str, amount: int, key: str | None) -> None:
        table, column = _TABLES[pot.kind]
        update = sql.SQL(f"UPDATE {{}} {change}, updated_at = now() WHERE {{}} = %s")
        names = (sql.Identifier(table), sql.Identifier(column))
        self.application.execute(update.format(*names), (amount, key or pot.id))


def _add(model: LedgerModel, pot: Pot, owner: str, credits: int) -> None:
    model.owners[pot] = owner
    model.balances[pot] = model.unexplained[pot] = credits


def _row(user: str, amount: int, kind: str, created_at: datetime, metadata: str | None) -> Row:
    if metadata is None:
        return Row(user, None, amount, "other", created_at)
    about = json.loads(metadata)
    held_at = about.get("held_at")
    at = datetime.fromisoformat(held_at) if held_at else created_at
    number = about.get("charged", about.get("opening"))
    assert kind == ("bonus" if about["kind"] in {"grant", "opening"} else "refund" if amount > 0 else "usage")
    return Row(user, about["pot"], amount, about["kind"], at, about.get("hold_id"), about.get("outcome"), number)
