"""The seed of this run of the tests.

Belongs here: where it comes from. Does not: what is drawn from it.
"""

import os
import random

SEED = int(os.environ.get("FLTR_SEED") or random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).randrange(10**6))
"""`FLTR_SEED`, to replay a run; else a new one each time, the same in all workers, to collect the same tests."""
