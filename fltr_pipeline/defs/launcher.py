"""The run launcher of one host: Dagster's default one, which can also tell that a run died with its code location.

Belongs here: asking the code location. Does not: launching, which is Dagster's own. Named in `dagster.yaml`; a launcher
with a container or a pod for each run tells by itself, so it takes this one's place.
"""

from dagster import DagsterRun, DefaultRunLauncher
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value


class CheckedRunLauncher(DefaultRunLauncher):
    """Runs as processes of the code location; run monitoring fails those that a restart of it has ended.

    Without this, such a run stays `STARTED`, and holds a slot, until `max_runtime_seconds`.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: that is what this class is for."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the code location still has the run's process; while it does not answer, the run may be alive."""
        client = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:
            return CheckRunHealthResult(WorkerStatus.UNKNOWN, "the run does not name its code location")
        try:
            answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=10)
        except DagsterUserCodeUnreachableError:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "the code location does not answer")
        if deserialize_value(answer, CanCancelExecutionResult).can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        current = self._instance.get_run_by_id(run.run_id)
        if current is None or current.is_finished:
            return CheckRunHealthResult(WorkerStatus.SUCCESS)
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND,
            "the code location that ran this has ended; what it left undone is taken up by the next run",
        )
