"""The queue of runs: Dagster's own, with a slot besides the workers' that only `reconcile` takes.

Belongs here: telling workers from sweeps. Does not: the queue itself, which is Dagster's. Named in `dagster.yaml`.
"""

from dagster import DagsterRun
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig

RECONCILE = "reconcile"
"""The job that has a slot of its own."""

WORKER_TAG = "fltr/worker"


class WorkerCoordinator(QueuedRunCoordinator):
    """`max_concurrent_runs` workers at once, and beside them one sweep.

    Without this, a sweep waits behind workers that may be busy for hours, and with it what a dead worker held.
    """

    def get_run_queue_config(self) -> RunQueueConfig:
        """One slot more than there are workers, and the limit on workers by their tag."""
        config = super().get_run_queue_config()
        workers = config.max_concurrent_runs
        limit = {"key": WORKER_TAG, "limit": workers}
        return config._replace(
            max_concurrent_runs=workers + 1, tag_concurrency_limits=[*(config.tag_concurrency_limits or []), limit]
        )

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Enqueue; whatever is no sweep counts as a worker, also what people start by hand."""
        run = context.dagster_run
        if run.job_name != RECONCILE:
            self._instance.add_run_tags(run.run_id, {WORKER_TAG: "yes"})
        return super().submit_run(context)
