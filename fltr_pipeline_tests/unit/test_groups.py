"""How a batch is cut into groups."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.pipeline.stage import grouped
from fltr_pipeline.stores.fltr.claims import Claim


def claimed(count: int) -> list[Claim]:
    return [Claim(f"doc-{n}", "dataset", f"{n}.txt", 1, None, 1, f"job-{n}", True, 0) for n in range(count)]


@given(sizes=st.lists(st.integers(0, 20)), room=st.integers(1, 30))
def test_groups_are_all_in_order_and_each_fits_or_is_one_alone(sizes: Sequence[int], room: int) -> None:
    batch = claimed(len(sizes))
    by_id = {c.document_id: size for c, size in zip(batch, sizes, strict=True)}
    groups = list(grouped(batch, by_id, lambda: room))
    assert [c for group in groups for c in group] == batch
    assert all(len(group) == 1 or sum(by_id[c.document_id] for c in group) <= room for group in groups)
    nexts = [group[0].document_id for group in groups[1:]]
    assert all(
        sum(by_id[c.document_id] for c in group) + by_id[first] > room
        for group, first in zip(groups, nexts, strict=False)
    )


def test_the_next_group_is_as_large_as_the_one_before_allows() -> None:
    batch, rooms = claimed(8), iter([1, 2, 100])
    groups = grouped(batch, {c.document_id: 1 for c in batch}, lambda: next(rooms))
    assert [len(group) for group in groups] == [1, 2, 5]
