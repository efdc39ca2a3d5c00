"""A run as a worker: it holds leases, renews them while it lives, and counts what it did.

Belongs here: identity, heartbeat, progress, report. Does not: what the work is (stage and its three kinds).
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from sqlalchemy import Engine

from fltr_pipeline.errors import TransientError
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import leases
from fltr_pipeline.stores.fltr.datasets import FailedDocument

_LOG = logging.getLogger(__name__)


class _Progress:
    """When the work last got on."""

    def __init__(self) -> None:
        self.made()

    def made(self) -> None:
        self._at = time.monotonic()

    def idle(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._at


_PROGRESS: ContextVar[_Progress | None] = ContextVar("progress", default=None)


def progressed() -> None:
    """Something is finished: a document parsed, a slice of chunks embedded. To be called by the work's own thread."""
    if progress := _PROGRESS.get():
        progress.made()


def progress() -> Callable[[], None]:
    """`progressed`, for other threads that the work's own thread waits for."""
    known = _PROGRESS.get()
    return known.made if known else lambda: None


@dataclass(frozen=True, slots=True)
class Worker:
    """One run's hands on one database."""

    fltr: Engine
    run_id: str
    lease_seconds: float
    stall_seconds: float = math.inf
    """A worker that finishes nothing for this long is taken for hung."""

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Renew the run's leases from a thread, three times per lease, for as long as its work makes progress.

        A missed beat is only logged, whatever the reason: if the lease runs out, the fence keeps this worker from
        writing.
        """
        stop = threading.Event()
        progress = _Progress()
        before = _PROGRESS.set(progress)

        def beat() -> None:
            while not stop.wait(self.lease_seconds / 3):
                if (idle := progress.idle()) > self.stall_seconds:
                    _LOG.error("run %s finished nothing for %.0f s: others may take its documents", self.run_id, idle)
                    continue
                try:
                    with transaction(self.fltr) as tx:
                        leases.heartbeat(tx, run_id=self.run_id, lease_seconds=self.lease_seconds)
                except TransientError as error:
                    _LOG.warning("heartbeat of run %s missed: %s", self.run_id, error)
                except Exception:  # noqa: BLE001 - without a next beat the run would lose all that it holds
                    _LOG.exception("heartbeat of run %s broke; it is tried again", self.run_id)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            _PROGRESS.reset(before)


@dataclass
class Report:
    """What an op did; becomes the materialisation's metadata."""

    expected: int = 0
    """Documents that waited at the stage when the op began; more may come."""
    done: int = 0
    awaiting_credits: int = 0
    lost: int = 0
    """Documents that another worker took over, or whose input changed, while we worked on them; or that another
    configuration had planned, and that wait to be planned anew."""
    put_back: int = 0
    """Documents that are tried again later, each by itself: their blobs can't be read at present."""
    credits_reserved: int = 0
    credits_charged: int = 0
    credits_returned: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Pages, chunks, tokens: whatever the stage counts."""
    finished: list[str] = field(default_factory=list)
    """Ids of the documents done."""
    failures: list[FailedDocument] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def claimed(self) -> int:
        """Documents that this op took into its hands."""
        return self.done + self.awaiting_credits + self.lost + self.put_back + len(self.failures)

    def summary(self) -> str:
        """For the log: how far, how fast, how long still."""
        rate = self.claimed / max(self.seconds, 1e-9)
        left = max(0, self.expected - self.claimed) / max(rate, 1e-9)
        ends = f"{self.done} done, {len(self.failures)} failed, {self.awaiting_credits} await credits"
        return f"{self.claimed} of {self.expected} documents: {ends} ({rate:.1f}/s, about {left:.0f} s to go)"

    @property
    def seconds(self) -> float:
        """Since the report was begun."""
        return time.monotonic() - self.started
