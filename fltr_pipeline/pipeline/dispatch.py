"""Which runs to launch. Pure: the sensor reads, this decides.

Level-triggered: it looks at what waits and at what is in flight, never at what it launched before, so nothing is lost
when a run fails and nothing is launched twice.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fltr_pipeline.credits.holds import Pot
from fltr_pipeline.stores.fltr.datasets import Awaiting, Backlog


def waiting_documents(
    backlog: Iterable[Backlog], awaiting: Iterable[Awaiting], spendable: Mapping[Pot, int]
) -> list[Backlog]:
    """What can be worked on now, by dataset: the backlog, and what awaits credits that have come.

    Where the pot no longer exists, a run tells its documents so.
    """
    found = {b.dataset_id: b for b in backlog}
    for a in awaiting:
        available = spendable.get(Pot(a.pot_kind, a.pot_id))
        affordable = a.documents if available is None else min(a.documents, available // a.least)
        if affordable > 0:
            known = found.get(a.dataset_id, Backlog(a.dataset_id, a.user_id, 0, None, a.name))
            found[a.dataset_id] = replace(known, waiting=known.waiting + affordable)
    return list(found.values())


def runs_to_launch(
    backlog: Sequence[Backlog], in_flight: Mapping[str, int], *, per_run: int, max_in_flight: int
) -> list[str]:
    """Dataset ids, one per run to launch, in order.

    A dataset wants ⌈waiting / per_run⌉ runs less those in flight. The slots go one by one to the payer with the fewest
    runs, the longest waiting dataset first, so that a single file never waits behind twenty thousand.
    """
    wanted = {b.dataset_id: -(-b.waiting // per_run) - in_flight.get(b.dataset_id, 0) for b in backlog}
    by_id = {b.dataset_id: b for b in backlog}
    busy = Counter({b.user_id: 0 for b in backlog})
    runs_of: Counter[str] = Counter(in_flight)
    for b in backlog:
        busy[b.user_id] += in_flight.get(b.dataset_id, 0)
    launched: list[str] = []
    for _ in range(max_in_flight - sum(in_flight.values())):
        open_ids = [i for i, n in wanted.items() if n > 0]
        if not open_ids:
            break
        chosen = min(open_ids, key=lambda i: (busy[by_id[i].user_id], runs_of[i], _since(by_id[i]), i))
        launched.append(chosen)
        wanted[chosen] -= 1
        busy[by_id[chosen].user_id] += 1
        runs_of[chosen] += 1
    return launched


def _since(backlog: Backlog) -> float:
    """New uploads by age; what was parked or awaited credits after them."""
    return backlog.oldest.timestamp() if backlog.oldest else math.inf
