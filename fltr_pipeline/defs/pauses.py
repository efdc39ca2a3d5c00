"""How long the sensors leave alone what failed: others get the slots, and a cause that stays makes no run a minute.

Belongs here: the pauses. Does not: what waits (sensors, reconcile).
"""

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import dagster as dg

FIRST = timedelta(minutes=1)
_MOST = timedelta(minutes=5)
_LATELY = timedelta(minutes=15)
_RECORDS = 500


def paused(instance: dg.DagsterInstance, job_name: str) -> dict[str, datetime]:
    """Until when, by partition (`""` for a run without one): what a run of the job failed at, and is not to be tried.

    A minute after a failure, twice as long after each further one of the last quarter of an hour, five minutes at most.
    """
    now, failures = datetime.now(UTC), defaultdict[str, list[datetime]](list)
    failed = dg.RunsFilter(job_name=job_name, statuses=[dg.DagsterRunStatus.FAILURE], updated_after=now - _LATELY)
    for record in instance.get_run_records(failed, limit=_RECORDS):
        failures[record.dagster_run.tags.get("dagster/partition", "")].append(record.update_timestamp)
    until = {p: max(times) + min(FIRST * 2 ** (len(times) - 1), _MOST) for p, times in failures.items()}
    return {partition: end for partition, end in until.items() if end > now}
