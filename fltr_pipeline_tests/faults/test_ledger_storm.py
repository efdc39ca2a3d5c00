"""The storm on the ledger: see storm and storm_checks. Short by default, a million calls with FLTR_FAULTS=long."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr

from fltr_pipeline.credits.holds import Pot
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.stores.database import engine_for
from fltr_pipeline.stores.schema import AUTH_ROLE, init_auth_copy
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline_tests.faults.storm import WORKERS, Storm, prepare, run, sweep
from fltr_pipeline_tests.faults.storm_checks import check, pots_with_open_holds
from fltr_pipeline_tests.seed import SEED

LONG = os.environ.get("FLTR_FAULTS") == "long"
STORMS, CALLS = (50, 313 * WORKERS) if LONG else (1, 3_000)


def drain(storm: Storm, pots: set[Pot]) -> None:
    """Two sweepers at once expire all that is still open."""
    engine = engine_for(SecretStr(storm.url), pre_ping=False)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: sweep(Ledger(engine), pots, age=0), range(2)))
    engine.dispose()


@pytest.mark.timeout(7_200 if LONG else 300)
@pytest.mark.parametrize("seed", range(SEED, SEED + STORMS))
def test_every_balance_is_exact_after_a_storm(new_database: Callable[[], str], seed: int) -> None:
    print(f"FLTR_SEED={seed}")
    admin_url = new_database()
    init_auth_copy(admin_url)
    storm = prepare(admin_url, as_role(admin_url, AUTH_ROLE), seed, CALLS)
    told, beside = run(storm)
    check(storm, told, beside, undisturbed=True)
    drain(storm, {f.payer.pot for f in storm.funds if f.closes})
    assert pots_with_open_holds(storm) == {f.payer.pot.name for f in storm.funds if not f.closes}
    check(storm, told, beside, undisturbed=True)
