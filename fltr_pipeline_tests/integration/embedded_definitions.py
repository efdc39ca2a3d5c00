"""Definitions as small as can be, for tests of the stack that runs them."""

import dagster


@dagster.asset
def nothing() -> None: ...


defs = dagster.Definitions(assets=[nothing])
