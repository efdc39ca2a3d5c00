"""The main job as its users meet it: the command line, the daemon, the sensor, the UI's own API; nothing is replaced.

One story on one stack, told in order: a demo is interrupted, another is killed, the third must come out right, and what
the first two left behind must come out right as well.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from fltr_pipeline.samples import EXPECTED_FAILURES, folder, sample_files
from fltr_pipeline_tests.processes import traces

PATIENCE = 900.0
pytestmark = pytest.mark.timeout(1800)
END = {"ready": len(sample_files()) - len(EXPECTED_FAILURES), "failed": len(EXPECTED_FAILURES)}


class Installation:
    """`fltr-pipeline` on a home of its own, as a new user runs it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        program = "import sys; from fltr_pipeline.cli import main; sys.argv[0] = 'fltr-pipeline'; main()"
        self._command = [sys.executable, "-c", program]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLTR_", "DAGSTER_"))}
        self._environment = clean | {"FLTR_HOME": str(home)}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self._command, *arguments], env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self._command, *arguments], env=self._environment, capture_output=True, text=True, check=False
        )

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def graphql(self, query: str, **variables: object) -> Any:
        """What the UI would ask."""
        ui = json.loads((self.home / "stack.json").read_text())["ui"]
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{ui}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["data"]


def read_until(stream: IO[str] | None, words: str) -> str:
    assert stream is not None
    seen = ""
    for line in stream:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"{words!r} was never said:\n{seen}")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(1)


@pytest.fixture(scope="module")
def installation(short_tmp: Path) -> Iterator[Installation]:
    installation = Installation(short_tmp / "main-job")
    yield installation
    installation.run("down")
    assert traces(installation.home) == []


def test_ctrl_c_in_the_middle_leaves_no_process(installation: Installation) -> None:
    demo = installation.start("demo")
    read_until(demo.stderr, "processing (started)")
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=120)
    assert demo.returncode not in {0, None}
    assert traces(installation.home) == []


def test_a_demo_can_be_run_at_once_after_a_kill(installation: Installation) -> None:
    killed = installation.start("demo")
    read_until(killed.stderr, "processing (started)")
    killed.kill()
    killed.communicate()

    outcome = installation.json("demo")

    assert [check for check in outcome["checks"] if not check["passed"]] == []
    assert outcome["documents"] == END
    assert {f["filename"]: f["code"] for f in outcome["failures"]} == EXPECTED_FAILURES
    assert outcome["credits"]["held"] == 0
    assert outcome["credits"]["after"] == outcome["credits"]["before"] - outcome["credits"]["charged"]
    with urllib.request.urlopen(outcome["ui"] + "/server_info", timeout=10) as answer:
        assert answer.status == 200


def test_what_the_interrupted_and_the_killed_demo_left_is_finished_too(installation: Installation) -> None:
    def counts() -> list[dict[str, int]]:
        return [dataset["documents"] for dataset in installation.json("status")]

    wait_for(lambda: counts() == [END] * 3, "three datasets in their end states")
    for dataset in installation.json("status"):
        standing = installation.json("status", dataset["dataset"]["id"])
        assert {f["filename"]: f["code"] for f in standing["failures"]} == EXPECTED_FAILURES
        assert standing["chunks"] > 1000
        assert standing["in_flight"] == []


def test_credits_that_run_out_and_come_back(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("# Tides\n\nThe moon pulls the sea; twice a day the water rises.\n")
    email = "poor@example.org"
    assert installation.run("db", "add-user", email, "--credits", "0").returncode == 0
    installation.json("upload", "--dataset", "tides", "--user", email, str(tmp_path / "note.md"))
    wait_for(lambda: installation.json("status", "tides")["documents"] == {"awaiting_credits": 1}, "awaiting credits")
    assert installation.json("credits", "statement", email)["reserved"] == 0

    installation.json("credits", "grant", email, "5")

    wait_for(lambda: installation.json("status", "tides")["documents"] == {"ready": 1}, "going on after a top-up")
    balance = installation.json("credits", "balance", email)
    assert (balance["available"], balance["held"]) == (3, 0)
    (hit,) = installation.json("search", "tides", "what moves the ocean?")["hits"]
    assert (hit["filename"], hit["page"]) == ("note.md", 1)


LAUNCH = """
mutation ($tags: [ExecutionTag!]!, $config: RunConfigData!) {
  launchRun(executionParams: {
    selector: {
      repositoryLocationName: "fltr_pipeline", repositoryName: "__repository__", pipelineName: "reprocess_dataset" }
    runConfigData: $config, mode: "default", executionMetadata: { tags: $tags } }) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""
RUN = """
query ($id: ID!) { runOrError(runId: $id) { ... on Run { status
    eventConnection { events { ... on MaterializationEvent { assetKey { path }
        metadataEntries { label ... on IntMetadataEntry { intValue } } } } } } } }
"""


def test_reprocessing_a_dataset_from_the_ui(installation: Installation) -> None:
    dataset = installation.json("status", "tides")["dataset"]["id"]
    tags = [
        {"key": "dagster/partition", "value": dataset},
        {"key": "dagster/partition_set", "value": "reprocess_dataset"},
    ]
    config = {"ops": {"documents": {"config": {"mode": "all"}}}}
    launched = installation.graphql(LAUNCH, tags=tags, config=config)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]
    wait_for(
        lambda: installation.graphql(RUN, id=run_id)["runOrError"]["status"] in {"SUCCESS", "FAILURE", "CANCELED"},
        "the run",
    )
    run = installation.graphql(RUN, id=run_id)["runOrError"]
    assert run["status"] == "SUCCESS"
    numbers = {
        event["assetKey"]["path"][-1]: {e["label"]: e["intValue"] for e in event["metadataEntries"] if "intValue" in e}
        for event in run["eventConnection"]["events"]
        if event.get("assetKey")
    }
    assert numbers["documents"]["documents_requeued"] == 1
    assert (numbers["documents"]["documents_done"], numbers["documents"]["unchanged"]) == (1, 1)
    assert numbers["document_embeddings"]["documents_done"] == 0, "what is live already goes no further"
    assert {numbers[op]["credits_charged"] for op in ("documents", "processing_jobs", "document_embeddings")} == {0}
    assert installation.json("status", "tides")["documents"] == {"ready": 1}


def test_a_run_that_died_with_its_code_location_is_noticed(installation: Installation) -> None:
    """As a container that is restarted by its engine: nobody runs `up`."""
    samples = folder() / "debian"
    email = "poor@example.org"
    installation.json("credits", "grant", email, "50")
    installation.json("upload", "--dataset", "manuals", "--user", email, str(samples / "debmake-doc.en.pdf"))
    runs = 'query ($id: String!) { runsOrError(filter: {tags: [{key: "dagster/partition", value: $id}]}) {'
    runs += " ... on Runs { results { status } } } }"
    dataset = installation.json("status", "manuals")["dataset"]["id"]

    def statuses() -> list[str]:
        return [run["status"] for run in installation.graphql(runs, id=dataset)["runsOrError"]["results"]]

    wait_for(lambda: statuses() == ["STARTED"], "a run at work")
    stack = json.loads((installation.home / "stack.json").read_text())
    (service,) = [service for service in stack["services"] if service["name"] == "code-location"]
    victim = psutil.Process(service["pid"])
    command, environment, cwd = victim.cmdline(), victim.environ(), victim.cwd()
    for process in [victim, *victim.children(recursive=True)]:
        process.kill()
    again = subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(
            lambda: installation.json("status", "manuals")["documents"] == {"ready": 1}, "another run to finish it"
        )
        wait_for(lambda: sorted(statuses()) == ["FAILURE", "SUCCESS"], "both runs to have ended")
        assert installation.json("credits", "balance", email)["held"] == 0
    finally:
        installation.run("down")
        again.wait(timeout=60)
    assert installation.run("up", "--detach").returncode == 0


def test_both_databases_hold_to_the_specification(installation: Installation) -> None:
    assert installation.run("db", "verify").returncode == 0


def test_down_leaves_nothing_running_and_keeps_the_data(installation: Installation) -> None:
    assert installation.run("down").returncode == 0
    assert traces(installation.home) == []
    assert psutil.disk_usage(str(installation.home)).total > 0
    refused = installation.run("status")
    assert refused.returncode == 1
    assert "fltr-pipeline up" in refused.stderr
