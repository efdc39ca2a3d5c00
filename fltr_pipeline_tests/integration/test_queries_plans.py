"""Plans: what a generation consists of before it is embedded, however large it is."""

import json
from typing import Any

from sqlalchemy import event

from fltr_pipeline.stores.fltr.plans import PlannedChunk
from fltr_pipeline_tests.queries import FINGERPRINT, Fltr, claimed

MANY = 60_000


def test_a_plan_of_very_many_chunks_is_written_in_slices_of_one_transaction(fltr: Fltr) -> None:
    """PostgreSQL cuts the connection over a parameter of a gigabyte, which four million rows are."""
    _, (claim,) = claimed(fltr)
    fltr.stage_text(claim, "a " * MANY)
    sent: list[int] = []

    def watch(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "INSERT INTO pipeline.chunks" in statement:
            sent.append(len(json.loads(parameters["rows"])))

    event.listen(fltr.engine, "before_cursor_execute", watch)
    try:
        fltr.plan(claim, [PlannedChunk(n, None, f"{n}", 1, 2 * n, 2 * n + 1, 3) for n in range(MANY)])
    finally:
        event.remove(fltr.engine, "before_cursor_execute", watch)

    assert sent == [50_000, 10_000]
    assert fltr.one("SELECT count(*), min(ordinal), max(ordinal) FROM pipeline.chunks") == (MANY, 0, MANY - 1)
    query = "SELECT state, chunks, fresh_chunks, tokens, fingerprint FROM pipeline.generations"
    assert fltr.one(query) == ("planned", MANY, MANY, 3 * MANY, FINGERPRINT)
