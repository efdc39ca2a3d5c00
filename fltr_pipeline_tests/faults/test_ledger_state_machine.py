"""The ledger against a model of it: any order of any calls, crashed, repeated and reordered, and what others do beside.

After every step the databases must be, row by row, what the model says, and each call must have answered as the model.

Short by default. `FLTR_FAULTS=long` makes it 10,000 examples of 200 steps for each machine, in ten tests of 1,000 each.
On two quiet cores that take two at a time, a test takes seven minutes (the ledger alone) or thirteen, all twenty
under two hours; twice that on busy ones. A test's number is its seed, counted from `FLTR_SEED`: several runs may share
the work by it (`-k "LedgerMachine-7"`), and one that failed is replayed by it, or by the blob that it prints.
"""

import logging
import os

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from fltr_pipeline_tests.faults.billing_machine import BillingMachine
from fltr_pipeline_tests.faults.ledger_machine import LedgerMachine, Machine
from fltr_pipeline_tests.faults.ledger_scene import Scene

LONG = os.environ.get("FLTR_FAULTS") == "long"
SEED = int(os.environ.get("FLTR_SEED", "1"))
RUNS, EXAMPLES, STEPS = (10, 1_000, 200) if LONG else (1, 60, 50)


@pytest.mark.timeout(100_000 if LONG else 600)
@pytest.mark.parametrize("number", range(SEED, SEED + RUNS))
@pytest.mark.parametrize("machine", [LedgerMachine, BillingMachine])
def test_any_order_of_calls_does_what_the_model_does(
    scene: Scene, machine: type[Machine], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    print(f"FLTR_SEED={number}")
    caplog.set_level(logging.CRITICAL, "fltr_pipeline")  # a pot that is gone is an error each time
    here = type(machine.__name__, (machine,), {"scene": scene})
    run_state_machine_as_test(
        seed(number)(here),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, print_blob=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
