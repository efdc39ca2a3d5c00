"""Customers, workers, reconcilers and mishaps, in an order drawn from a seed, on servers of their own.

Belongs here: what happens and to whom, and bringing all to rest. Does not: what must be true then (test_interleavings).

The order is the seed's; how far a worker has come when something happens is the machine's.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIGINT, SIGKILL

from fltr_pipeline.credits.holds import Payer, Pot
from fltr_pipeline.errors import NotFound, StoreUnavailable
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline import extract
from fltr_pipeline.pipeline.dispatch import waiting_documents
from fltr_pipeline.pipeline.reprocess import requeue
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets
from fltr_pipeline.stores.fltr.datasets import Backlog, Dataset
from fltr_pipeline_tests.crashes import runs
from fltr_pipeline_tests.crashes.engine import ParserHere
from fltr_pipeline_tests.crashes.hands import Hands, Place
from fltr_pipeline_tests.faults.own_server import OwnServer
from fltr_pipeline_tests.milvus_lite import MilvusLite
from fltr_pipeline_tests.world import World

WORKERS = 3
_FORKS = get_context("forkserver")
_WORDS = ("bread", "flour", "water", "treaty", "river", "empire", "map", "salt", "yeast", "city", "war", "oven")
_DEADLINE = 120.0


class Event(StrEnum):
    """What may happen next."""

    UPLOAD = "upload"
    EDIT = "edit"
    SAME = "upload of the same bytes"
    DELETE = "delete a document"
    DELETE_DATASET = "delete a dataset"
    REPROCESS = "reprocess"
    TOP_UP = "top-up"
    LOOK = "look whether all that is live is in Milvus"
    KILL_WORKER = "kill a worker"
    KILL_RECONCILER = "kill the reconciler"
    LAPSE = "leases run out, retries come due"
    CRASH_POSTGRES = "crash PostgreSQL"
    STOP_MILVUS = "stop Milvus"
    KILL_MILVUS = "kill Milvus"


_OF_A_HUNDRED = {
    Event.UPLOAD: 24, Event.EDIT: 20, Event.SAME: 4, Event.DELETE: 7, Event.DELETE_DATASET: 1, Event.REPROCESS: 6,
    Event.TOP_UP: 4, Event.LOOK: 12, Event.KILL_WORKER: 9, Event.KILL_RECONCILER: 3, Event.LAPSE: 6,
    Event.CRASH_POSTGRES: 2, Event.STOP_MILVUS: 1, Event.KILL_MILVUS: 1,
}  # fmt: skip


def schedule(rng: random.Random, events: int) -> list[Event]:
    """Each kind at least once, in a random order behind a few uploads."""
    drawn = [e for e, n in _OF_A_HUNDRED.items() for _ in range(max(1, n * events // 100))]
    rng.shuffle(drawn)
    return [Event.UPLOAD] * 4 + drawn


@dataclass
class Customer:
    """One user and their dataset, and what they would say is in it."""

    payer: Payer
    dataset: Dataset
    texts: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    """Every text that they ever uploaded: what could be charged, at most."""
    reprocessed: int = 0
    """Documents named by their reprocessings."""
    past: list[Dataset] = field(default_factory=list)
    """Deleted datasets."""


def work(place: Place, name: str, last_day: Path, reconciles: bool) -> None:
    """A worker's process, or a reconciler's: at it until the file is there. A store that is away is tried again."""
    extract.ParserPool = ParserHere  # type: ignore[assignment,attr-defined]
    hands, rng = Hands.at(place, name), random.Random(name)
    while not last_day.exists():
        with suppress(StoreUnavailable):
            if reconciles:
                runs.reconcile(hands)
            else:
                _run_somewhere(hands, rng)
        time.sleep(rng.uniform(0, 0.2))
    hands.close()


def _run_somewhere(hands: Hands, rng: random.Random) -> None:
    with transaction(hands.services.fltr) as tx:
        found = datasets.every(tx)
    with suppress(NotFound):  # it was deleted
        runs.run(hands, rng.choice(found))


class Town:
    """All of it. `told`: the events as they happened, to be printed."""

    def __init__(self, world: World, postgres: OwnServer, milvus: MilvusLite, seed: int, folder: Path) -> None:
        self.world, self.told = world, list[str]()
        self._postgres, self._milvus, self._rng = postgres, milvus, random.Random(seed)
        self._last_day = folder / "last day"
        self._place = Place.of(world)
        self.hands = Hands.at(self._place, "customer")
        world.services = self.hands.services
        self.hands.services.vectors.ensure()
        self.customers = [self._customer(credits) for credits in (10_000, 150)]
        self._at_work: dict[str, BaseProcess] = {}
        self._started = Counter[str]()

    def live(self, events: int) -> None:
        """Everybody at work, and one event after the other."""
        for _ in range(WORKERS):
            self._start("worker")
        self._start("reconciler")
        for event in schedule(self._rng, events):
            self.told.append(f"{event}: {self._happen(event) or ''}")
            time.sleep(self._rng.uniform(0, 0.3))
            self._nobody_broke()

    def rest(self) -> None:
        """All go home; then one worker and one reconciler go on until there is nothing left to do."""
        self._last_day.touch()
        for process in self._at_work.values():
            process.join(_DEADLINE)
        self._nobody_broke()
        for _ in range(10):
            self._lapse()
            for customer in self.customers:
                runs.run(self.hands, customer.dataset)
            if runs.reconcile(self.hands).nothing and not self._waiting():
                self._lapse()
                runs.reconcile(self.hands)  # a set-up that nobody can pay for: the run before left its charge open
                return
        raise AssertionError("there is no end to it")

    def _waiting(self) -> list[Backlog]:
        """What the sensor would launch a run for: an attempt that ended may have given credits back."""
        services = self.hands.services
        with transaction(services.fltr) as tx:
            backlog, awaiting = datasets.backlog(tx), datasets.awaiting(tx)
        return waiting_documents(
            backlog, awaiting, services.ledger.spendable({Pot(a.pot_kind, a.pot_id) for a in awaiting})
        )

    def close(self) -> None:
        """Nobody stays behind."""
        for process in self._at_work.values():
            process.kill()
            process.join()
        self.hands.close()

    def top_up(self, customer: Customer, credits: int) -> None:
        """The application sells credits, as it does: a row and the balance, in one transaction."""
        self.world.change_auth(
            "WITH bought AS (INSERT INTO credit_transactions (id, user_id, amount, type, operation, created_at)"
            " VALUES (gen_random_uuid(), %s, %s, 'purchase', 'checkout', now()) RETURNING user_id, amount)"
            " UPDATE user_credits u SET credits = credits + b.amount FROM bought b WHERE u.user_id = b.user_id",
            customer.payer.user_id, credits,
        )  # fmt: skip

    def _happen(self, event: Event) -> str | None:
        customer = self._rng.choice(self.customers)
        happenings: dict[Event, Callable[[], str | None]] = {
            Event.UPLOAD: lambda: self._upload(customer, f"{len(customer.inputs)}.txt", self._text()),
            Event.EDIT: lambda: self._edit(customer),
            Event.SAME: lambda: self._again(customer),
            Event.DELETE: lambda: self._delete(customer),
            Event.DELETE_DATASET: lambda: self._delete_dataset(customer),
            Event.REPROCESS: lambda: self._reprocess(customer),
            Event.TOP_UP: lambda: self.top_up(customer, 50),
            Event.LOOK: lambda: self._look(customer),
            Event.KILL_WORKER: lambda: self._kill("worker"),
            Event.KILL_RECONCILER: lambda: self._kill("reconciler"),
            Event.LAPSE: self._lapse,
            Event.CRASH_POSTGRES: self._postgres.crash,
            Event.STOP_MILVUS: lambda: self._restart_milvus(kill=False),
            Event.KILL_MILVUS: lambda: self._restart_milvus(kill=True),
        }
        return happenings[event]()

    def _customer(self, credits: int) -> Customer:
        payer = self.world.user(credits)
        return Customer(payer, self.world.dataset(payer))

    def _text(self) -> str:
        return "\n\n".join(self._sentence() for _ in range(self._rng.randint(1, 6)))

    def _sentence(self) -> str:
        return " ".join(self._rng.choices(_WORDS, k=8)).capitalize() + "."

    def _upload(self, customer: Customer, filename: str, text: str) -> str:
        runs.upload(self.hands, customer.dataset, filename, text.encode())
        customer.texts[filename] = text
        customer.inputs.append(text)
        return f"{filename} of {customer.dataset.id}"

    def _edit(self, customer: Customer) -> str | None:
        if not customer.texts:
            return None
        filename = self._rng.choice(list(customer.texts))
        paragraphs = customer.texts[filename].split("\n\n")
        paragraphs[self._rng.randrange(len(paragraphs))] = self._sentence()
        return self._upload(customer, filename, "\n\n".join(paragraphs))

    def _again(self, customer: Customer) -> str | None:
        if not customer.texts:
            return None
        filename = self._rng.choice(list(customer.texts))
        return self._upload(customer, filename, customer.texts[filename])

    def _delete(self, customer: Customer) -> str | None:
        if not customer.texts:
            return None
        filename = self._rng.choice(list(customer.texts))
        del customer.texts[filename]
        self.world.change(
            "DELETE FROM documents WHERE dataset_id = %s AND filename = %s", customer.dataset.id, filename
        )
        return f"{filename} of {customer.dataset.id}"

    def _delete_dataset(self, customer: Customer) -> str:
        self.world.change("DELETE FROM datasets WHERE id = %s", customer.dataset.id)
        customer.past.append(customer.dataset)
        customer.texts.clear()
        customer.dataset = self.world.dataset(customer.payer)
        return f"{customer.past[-1].id}, and {customer.dataset.id} comes in its place"

    def _reprocess(self, customer: Customer) -> str:
        mode = self._rng.choice([ReprocessMode.failed, ReprocessMode.stale, ReprocessMode.all])
        queued = requeue(self.hands.services, customer.dataset.id, mode, charge=True)
        customer.reprocessed += queued
        return f"{mode.value} of {customer.dataset.id}, {queued} documents"

    def _look(self, customer: Customer) -> None:
        """Keys that are live before and after a look into Milvus must have been there."""
        before = self._live(customer)
        stored = self.hands.services.vectors.present(sorted(before), customer.dataset.id)
        missing = (before & self._live(customer)) - stored
        assert not missing, f"searchable, but not in Milvus: {missing}"

    def _live(self, customer: Customer) -> set[str]:
        rows = self.world.rows(
            "SELECT c.key FROM documents d JOIN pipeline.documents p ON p.document_id = d.id::text"
            " JOIN pipeline.chunks c ON c.document_id = p.document_id AND c.generation = p.live_generation"
            " WHERE d.dataset_id = %s", customer.dataset.id,
        )  # fmt: skip
        return {key for (key,) in rows}

    def _lapse(self) -> None:
        self.world.change(  # in the order in which all lock them
            "WITH mine AS MATERIALIZED (SELECT document_id FROM pipeline.documents"
            "                           WHERE lease_until > now() OR retry_at IS NOT NULL ORDER BY 1 FOR UPDATE)"
            " UPDATE pipeline.documents p SET retry_at = NULL,"
            " lease_until = CASE WHEN lease_until > now() THEN now() - interval '1 s' ELSE lease_until END"
            " FROM mine m WHERE p.document_id = m.document_id"
        )
        self.world.change("UPDATE pipeline.charges SET created_at = created_at - interval '1 hour'")
        self.world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '1 hour'")

    def _restart_milvus(self, *, kill: bool) -> None:
        self._milvus.stop(SIGKILL if kill else SIGINT)
        time.sleep(self._rng.uniform(0, 1))
        self._milvus.start()

    def _start(self, kind: str) -> None:
        self._started[kind] += 1
        name = f"{kind}{self._started[kind]}"
        arguments = (self._place, name, self._last_day, kind == "reconciler")
        self._at_work[name] = process = _FORKS.Process(target=work, args=arguments)
        process.start()

    def _kill(self, kind: str) -> str:
        name = self._rng.choice([n for n in self._at_work if n.startswith(kind)])
        self._at_work[name].kill()
        self._at_work.pop(name).join()
        self._start(kind)
        return name

    def _nobody_broke(self) -> None:
        broken = {n: p.exitcode for n, p in self._at_work.items() if p.exitcode not in {None, 0}}
        assert not broken, f"broke by themselves, see above: {broken}"
