"""Leases: how long a worker's hold on its documents lasts, and how long a failure waits for the next attempt.

Belongs here: renewing and ending the leases of a run. Does not: who gets a document (claims).
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, text

BACKOFF = "make_interval(secs => least(600, 5 * power(2, least({failures}, 10))))"
"""5 s doubling to 10 min."""

_CLOCK = text("SELECT now()")

# Index: pipeline.documents_leased. A row that its worker is writing needs no renewal; waiting for it could deadlock.
_HEARTBEAT = text(f"""
    UPDATE pipeline.documents
    SET lease_until = now() + make_interval(secs => :lease),
        retry_at = CASE WHEN attempts > 0
                        THEN now() + make_interval(secs => :lease) + {BACKOFF.format(failures="attempts")} END
    WHERE document_id IN (
        SELECT document_id FROM pipeline.documents WHERE run_id = :run_id AND lease_until IS NOT NULL
        ORDER BY document_id FOR UPDATE SKIP LOCKED)
""")  # noqa: S608 - of constants

# Index: pipeline.documents_leased.
_EXPIRE_RUNS = text(f"""
    UPDATE pipeline.documents
    SET lease_until = now() - interval '1 second',
        retry_at = CASE WHEN attempts > 0 THEN now() + {BACKOFF.format(failures="attempts")} END
    WHERE run_id = ANY(:run_ids) AND lease_until IS NOT NULL
    RETURNING document_id
""")  # noqa: S608 - of constants


def clock(tx: Connection) -> datetime:
    """The time by which it is noted when a lease ends, or when credits were refused."""
    now: datetime = tx.execute(_CLOCK).scalar_one()
    return now


def heartbeat(tx: Connection, *, run_id: str, lease_seconds: float) -> None:
    """Renew the leases of all documents in the run's hands; one at which workers died waits beyond its lease's end."""
    tx.execute(_HEARTBEAT, {"run_id": run_id, "lease": lease_seconds})


def expire_runs(tx: Connection, run_ids: Sequence[str]) -> list[str]:
    """Let the leases of runs known to be dead run out now; returns the documents that may be taken over."""
    return list(tx.execute(_EXPIRE_RUNS, {"run_ids": list(run_ids)}).scalars())
