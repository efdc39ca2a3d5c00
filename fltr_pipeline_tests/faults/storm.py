"""A storm on the ledger: 64 workers in several processes, every call at random; the application works beside them.

Belongs here: the holds, the workers, the other writers, and what each was told. Does not: the pots (storm_funds), what
must be true afterwards (storm_checks), faults.

A hold is a function of the seed and a number, so that any worker of any process can build the same one: a worker's
calls touch numbers about its own progress, and so meet the calls of all others.
"""

import random
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from multiprocessing import get_context
from threading import Event
from typing import NamedTuple, TypeVar

import psycopg
from pydantic import SecretStr

from fltr_pipeline.credits.holds import Close, CloseState, Hold, Payer, Pot
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.errors import PayerGone, PotGone, StoreUnavailable
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth.rows import utc_now
from fltr_pipeline.stores.database import engine_for
from fltr_pipeline.stores.schema.indexes import HELPFUL
from fltr_pipeline_tests.faults.storm_funds import Fund, funds

WORKERS = 64
PROCESSES = 4
MOST = 12
"""Credits that one hold may be about."""
_TOUCHES = 8  # calls that name the same hold, on average
_T = TypeVar("_T")


class Call(StrEnum):
    RESERVE = "reserve"
    CLOSE = "close"
    VOID = "void"
    REFUND = "refund"
    GRANT = "grant"


_WEIGHTS = {Call.RESERVE: 45, Call.CLOSE: 33, Call.VOID: 8, Call.REFUND: 10, Call.GRANT: 4}


class Told(NamedTuple):
    """What a caller was told about one hold. A call of several holds makes several, but for a refund: one, of all."""

    call: Call
    hold_id: str
    pot: Pot
    state: str
    credits: int
    started: float
    ended: float


@dataclass(frozen=True)
class Storm:
    """All that a worker process needs to know."""

    url: str
    """`fltr_auth` as the least-privilege role."""
    admin_url: str
    seed: int
    calls: int
    funds: tuple[Fund, ...]

    @property
    def holds(self) -> int:
        """How many numbers stand for a hold."""
        return max(100, self.calls * 3 // _TOUCHES)

    def fund(self, number: int) -> Fund:
        rng = random.Random(f"{self.seed} fund {number}")
        return rng.choices(self.funds, [f.weight for f in self.funds])[0]

    def hold(self, number: int, sequence: int) -> Hold:
        rng = random.Random(f"{self.seed} hold {number}")
        return Hold(
            subject_id=f"{self.seed}-{number}", op=rng.choice(list(Op)), generation=1, sequence=sequence,
            amount=rng.randint(1, MOST), payer=self.fund(number).payer, job_id=f"job-{number}", run_id="storm",
            price_version="2026-11", unit_price=1,
        )  # fmt: skip


@dataclass
class Beside:
    """What the application, the sweepers and those who want more than they may did meanwhile."""

    purchased: dict[Pot, int] = field(default_factory=dict)
    deleted: list[Pot] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)


def prepare(admin_url: str, url: str, seed: int, calls: int) -> Storm:
    """Make its funds; with an even seed, also the indexes that help the ledger, as an application may have them."""
    made = funds(admin_url)
    with psycopg.connect(admin_url) as connection:
        connection.execute(_NOTE_OVERDRAFTS)
        for index in HELPFUL if seed % 2 == 0 else ():
            connection.execute(f"CREATE INDEX {index.name} ON {index.table} ({index.of})".encode())
        connection.execute("ANALYZE")
    return Storm(url, admin_url, seed, calls, made)


# Exact where a sample would only be lucky: every committed balance below zero is noted.
_NOTE_OVERDRAFTS = b"""
    CREATE TABLE overdrafts (pots text, credits int);
    CREATE FUNCTION note_overdraft() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN INSERT INTO overdrafts VALUES (TG_TABLE_NAME, NEW.credits); RETURN NULL; END $$;
    CREATE TRIGGER note AFTER UPDATE ON user_credits FOR EACH ROW WHEN (NEW.credits < 0)
        EXECUTE FUNCTION note_overdraft();
    CREATE TRIGGER note AFTER UPDATE ON teams FOR EACH ROW WHEN (NEW.credits < 0)
        EXECUTE FUNCTION note_overdraft();
    CREATE TRIGGER note AFTER UPDATE ON api_key_credits FOR EACH ROW WHEN (NEW.credits < 0)
        EXECUTE FUNCTION note_overdraft();
"""


def run(storm: Storm, disturb: Callable[[Callable[[], bool]], None] = lambda _: None) -> tuple[list[Told], Beside]:
    """Let it rage; returns what the workers were told, and what happened beside.

    `disturb` is called in this thread with a function that tells whether the workers are still at it.
    """
    beside, calm, engine = Beside(), Event(), engine_for(SecretStr(storm.url), pre_ping=False)
    with (
        ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as processes,
        ThreadPoolExecutor(6) as threads,
    ):
        shares = [processes.submit(_share, storm, n) for n in range(PROCESSES)]
        others = [threads.submit(_purchases, storm, n, calm) for n in range(2)]
        deletions = threads.submit(_deletions, storm, calm)
        sweeps = [threads.submit(_sweeps, storm, Ledger(engine), n, calm) for n in range(2)]
        demand = threads.submit(_demand, storm, Ledger(engine))
        try:
            disturb(lambda: not all(s.done() for s in shares))
            wait(shares)
        finally:
            calm.set()
    engine.dispose()
    for bought in (o.result() for o in others):
        for pot, credits in bought.items():
            beside.purchased[pot] = beside.purchased.get(pot, 0) + credits
    beside.deleted = deletions.result()
    beside.told = _together([*sweeps, demand])
    return _together(shares), beside


def _together(parts: Sequence[Future[list[Told]]]) -> list[Told]:
    return [told for part in parts for told in part.result()]


def _share(storm: Storm, process: int) -> list[Told]:
    """One process's workers."""
    engine = engine_for(SecretStr(storm.url), pre_ping=False)
    each = WORKERS // PROCESSES
    with ThreadPoolExecutor(each) as threads:
        ledger = Ledger(engine)
        told = _together([threads.submit(_work, storm, ledger, process * each + n) for n in range(each)])
    engine.dispose()
    return told


def _work(storm: Storm, ledger: Ledger, worker: int) -> list[Told]:
    rng = random.Random(f"{storm.seed} worker {worker}")
    told: list[Told] = []
    mine = storm.calls // WORKERS
    for step in range(mine):
        call = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        frontier = storm.holds * step // mine
        size = 1 if rng.random() < 0.6 else rng.randint(2, 12)
        behind = 20 if call is Call.RESERVE else 60
        numbers = [max(0, frontier - int(rng.expovariate(1 / behind))) for _ in range(size)]
        told += _call(storm, ledger, rng, call, numbers)
    return told


def _call(storm: Storm, ledger: Ledger, rng: random.Random, call: Call, numbers: Sequence[int]) -> list[Told]:
    """One call, repeated with the same holds until the ledger answers; numbers may name a hold twice."""
    if call is Call.RESERVE:
        holds = [storm.hold(n, _sequence(rng)) for n in numbers]
        return _asked(call, holds, lambda: {i: (s, 0) for i, s in ledger.reserve(holds).items()})
    numbers = [n for n in numbers if storm.fund(n).closes]
    holds = [storm.hold(n, _sequence(rng)) for n in numbers]
    if call is Call.CLOSE:
        closes = [_close(rng, h) for h in holds]
        return _asked(call, holds, lambda: {i: (c.state, c.charged) for i, c in ledger.close(closes).items()})
    if call is Call.VOID:
        return _asked(
            call, holds, lambda: {i: (c.state, c.charged) for i, c in ledger.void(holds, reason="expired").items()}
        )
    if call is Call.REFUND:
        return _refund(ledger, [h for n, h in zip(numbers, holds, strict=True) if not storm.fund(n).doomed])
    fund, amount = storm.fund(numbers[0]) if numbers else storm.funds[0], rng.randint(1, 5)
    return _grant(ledger, fund.payer, amount)


def _sequence(rng: random.Random) -> int:
    return 1 if rng.random() < 0.9 else 2


def _close(rng: random.Random, hold: Hold) -> Close:
    if rng.random() < 0.6:
        return Close(hold, rng.randint(1, hold.amount), CloseState.SETTLED, "done", used=3)
    return Close(hold, 0, CloseState.RELEASED, rng.choice(["failed", "expired"]))


def _asked(call: Call, holds: Sequence[Hold], ask: Callable[[], dict[str, tuple[str, int]]]) -> list[Told]:
    started, answers = time.monotonic(), until_answered(ask)
    pots, ended = {h.id: h.payer.pot for h in holds}, time.monotonic()
    assert answers.keys() == pots.keys()
    return [Told(call, i, pots[i], str(state), n, started, ended) for i, (state, n) in answers.items()]


def _refund(ledger: Ledger, holds: Sequence[Hold]) -> list[Told]:
    if not holds:
        return []
    started, back = time.monotonic(), until_answered(lambda: ledger.refund(holds, reason="gave_up"))
    return [Told(Call.REFUND, "", holds[0].payer.pot, "", back, started, time.monotonic())]


def _grant(ledger: Ledger, payer: Payer, amount: int) -> list[Told]:
    """Not repeated by hand: a second grant is a second grant."""
    started = time.monotonic()
    try:
        ledger.grant(payer, amount, reason="sorry")
    except (PotGone, PayerGone) as error:
        return [Told(Call.GRANT, "", payer.pot, type(error).__name__, 0, started, time.monotonic())]
    except StoreUnavailable:
        return [Told(Call.GRANT, "", payer.pot, "unknown", 0, started, time.monotonic())]
    return [Told(Call.GRANT, "", payer.pot, "granted", amount, started, time.monotonic())]


def until_answered(ask: Callable[[], _T]) -> _T:
    """As a worker does: the same call, again and again while the store does not answer."""
    while True:
        try:
            return ask()
        except StoreUnavailable:
            time.sleep(0.2)


def _purchases(storm: Storm, number: int, calm: Event) -> dict[Pot, int]:
    """As the application: its own row without our metadata, and a relative update, in one transaction."""
    rng, bought = random.Random(f"{storm.seed} application {number}"), dict[Pot, int]()
    buyers = [f.payer for f in storm.funds if f.payer.pot.kind == "user"] + [storm.funds[0].payer]
    while not calm.wait(rng.uniform(0, 0.02)):
        payer, amount = rng.choice(buyers), rng.randint(1, 20)
        row_id = uuid.uuid4()
        if _persistently(storm.admin_url, lambda c: _purchase(c, row_id, payer, amount)):  # noqa: B023
            bought[payer.pot] = bought.get(payer.pot, 0) + amount
    return bought


def _purchase(connection: psycopg.Connection, row_id: uuid.UUID, payer: Payer, amount: int) -> bool:
    """Whether it is bought: not by a user who was deleted."""
    row = (row_id, payer.user_id, payer.team_id, amount)
    table, key = ("teams", "id") if payer.team_id else ("user_credits", "user_id")
    update = f"UPDATE {table} SET credits = credits + %s, updated_at = now() WHERE {key} = %s".encode()
    try:
        new = connection.execute(
            "INSERT INTO credit_transactions (id, user_id, team_id, amount, type, operation, created_at)"
            " VALUES (%s, %s, %s, %s, 'purchase', 'checkout', now()) ON CONFLICT DO NOTHING", row
        ).rowcount  # fmt: skip
    except psycopg.errors.ForeignKeyViolation:
        connection.rollback()
        return False
    # Not new: the COMMIT of an earlier try landed, but its answer was lost.
    return not new or connection.execute(update, (amount, payer.pot.id)).rowcount == 1


def _deletions(storm: Storm, calm: Event) -> list[Pot]:
    rng = random.Random(f"{storm.seed} deletions")
    doomed = [f for f in storm.funds if f.doomed]
    rng.shuffle(doomed)
    for fund in doomed:
        calm.wait(rng.uniform(0.1, 0.8))
        _persistently(storm.admin_url, lambda c: _delete(c, fund))  # noqa: B023
    return [f.payer.pot for f in doomed]


def _delete(connection: psycopg.Connection, fund: Fund) -> None:
    if fund.payer.pot.kind == "team":
        connection.execute("UPDATE user_credits SET team_id = NULL WHERE team_id = %s", (fund.payer.team_id,))
        connection.execute("DELETE FROM teams WHERE id = %s", (fund.payer.team_id,))
    elif fund.payer.pot.kind == "api_key":
        connection.execute("DELETE FROM api_key_credits WHERE api_key = %s", (fund.key,))
    else:
        connection.execute("DELETE FROM users WHERE id = %s", (fund.payer.user_id,))


def _persistently(url: str, do: Callable[[psycopg.Connection], _T]) -> _T:
    """In one transaction, again after a deadlock or without a server."""
    while True:
        try:
            with psycopg.connect(url) as connection:
                return do(connection)
        except psycopg.OperationalError:
            time.sleep(0.1)


def _demand(storm: Storm, ledger: Ledger) -> list[Told]:
    """More than the limited keys may use, asked until it is answered: afterwards no such hold fits any more."""
    told: list[Told] = []
    for fund in storm.funds:
        if fund.daily_limit is not None and not fund.closes:
            for n in range(fund.daily_limit // MOST + 1):
                hold = Hold(
                    subject_id=f"{storm.seed}-demand-{n}", op=Op.DOCUMENT_EMBED, generation=1, sequence=1, amount=MOST,
                    payer=fund.payer, job_id="job", run_id="storm", price_version="2026-11", unit_price=1,
                )  # fmt: skip
                told += _asked(Call.RESERVE, [hold], lambda: {i: (s, 0) for i, s in ledger.reserve([hold]).items()})  # noqa: B023
    return told


def _sweeps(storm: Storm, ledger: Ledger, number: int, calm: Event) -> list[Told]:
    """Expire what is older than half a second, as the reconciler would: some of it is about to be settled."""
    ledger, told, closing = (
        Ledger(engine_for(SecretStr(storm.url), pre_ping=False)),
        list[Told](),
        {f.payer.pot for f in storm.funds if f.closes},
    )
    while not calm.wait(0.5 + number / 7):
        told += sweep(ledger, closing, age=0.5)
    return told


def sweep(ledger: Ledger, pots: set[Pot], age: float) -> list[Told]:
    """Void what is open for `age` seconds."""
    old = until_answered(lambda: ledger.open_holds(utc_now() - timedelta(seconds=age)))
    holds = [h for h in old if h.payer.pot in pots]
    return _asked(
        Call.VOID, holds, lambda: {i: (c.state, c.charged) for i, c in ledger.void(holds, reason="expired").items()}
    )
