"""The process that dies: forked off a server that has imported everything, so that a death costs milliseconds.

Belongs here: starting it, and what became of it. Does not: what it does until then (workers).
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline_tests.crashes.hands import Hands, Place
from fltr_pipeline_tests.crashes.points import First, Point, Probe, Step

SESSION = "victim"
"""How the servers know it."""

_DEADLINE = 60.0
_FORKS = multiprocessing.get_context("forkserver")
_LATE = ["fsspec.implementations.local", "pymilvus", "pypdf", "sqlalchemy.dialects.postgresql.psycopg", "tokenizers"]
"""What the pipeline imports when it first needs it: most of a short life, were it not imported before the fork."""

_FORKS.set_forkserver_preload(
    [__name__, "fltr_pipeline_tests.crashes.operations", "fltr_pipeline_tests.crashes.path", *_LATE]
)

Work = Callable[[Hands], object]
Watch = Callable[[Probe, Hands], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the process. One that came to its end tells its steps, and in what words a store was away."""

    hit: bool
    steps: Sequence[Step] = ()
    unavailable: str | None = None


def statements(probe: Probe, hands: Hands) -> None:
    """Each statement on the two databases is a step."""
    probe.watch(hands.services.fltr, "fltr")
    probe.watch(hands.services.ledger.engine, "fltr_auth")


def run(place: Place, work: Work, point: Point | First | None, watch: Watch = statements) -> Outcome:
    """Do `work` in a process of its own that is hit at `point`, of the steps that `watch` sees; None: only count."""
    receiver, sender = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_main, args=(place, work, point, watch, sender))
    process.start()
    sender.close()
    try:
        assert receiver.poll(_DEADLINE), "the process does not come to an end"
        outcome: Outcome = receiver.recv()
    except EOFError:
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"the process broke: exit code {process.exitcode}"
        outcome = Outcome(hit=True)
    finally:
        process.kill()
        process.join()
        receiver.close()
    return outcome


def _main(place: Place, work: Work, point: Point | First | None, watch: Watch, sender: Connection) -> None:
    hands, probe = Hands.at(place, SESSION), Probe(point)
    watch(probe, hands)
    unavailable = None
    try:
        work(hands)
    except StoreUnavailable as error:
        unavailable = str(error)
    hands.close()
    sender.send(Outcome(hit=probe.hit, steps=probe.steps, unavailable=unavailable))
