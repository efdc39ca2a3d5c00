"""SIGKILL at each statement of the migration and of its rollback: afterwards it is the old state or the new one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fltr_pipeline.stores.schema import migration
from fltr_pipeline.stores.schema.migration import State
from fltr_pipeline_tests import migration_victim, old_auth
from fltr_pipeline_tests.migration_victim import COMMIT, Moment, Point, Work


@pytest.mark.parametrize("partial", [0, 2], ids=["fresh", "partial"])
def test_a_killed_apply_left_all_as_it_was_or_migrated_it(
    old_auth_copy: Callable[[], str], tmp_path: Path, partial: int
) -> None:
    def fresh() -> str:
        url = old_auth_copy()
        if partial:
            old_auth.execute(url, *old_auth.TIDY)
            old_auth.run_document(url, old_auth.DOCUMENT[:partial])
        return url

    kill_everywhere(migration_victim.apply, fresh, tmp_path, State.DONE)


def test_a_killed_rollback_left_all_as_it_was_or_did_it(old_auth_copy: Callable[[], str], tmp_path: Path) -> None:
    def migrated() -> str:
        url = old_auth_copy()
        migration_victim.apply(url, tmp_path)
        return url

    kill_everywhere(migration_victim.rollback, migrated, tmp_path, State.FRESH)


def kill_everywhere(work: Work, make: Callable[[], str], folder: Path, end: State) -> None:
    """One database is hit again and again while nothing changes in it; a new one is made after one that was changed."""
    counted = make()
    points = migration_victim.points(work, counted, folder)
    new = old_auth.fingerprint(counted)
    verbs = {point.statement.split()[0] for point in points}
    assert {"LOCK", "INSERT", "ALTER", COMMIT} <= verbs, verbs
    url = make()
    old, changed = old_auth.fingerprint(url), []
    for point in points:
        migration_victim.kill(work, url, folder, point)
        found = old_auth.fingerprint(url)
        assert found in {old, new}, point
        if found == new:
            assert migration.plan(url).state is end
            changed.append(point)
            url = make()
    assert {(point.statement, point.moment) for point in changed} - {(COMMIT, Moment.SENT)} == {(COMMIT, Moment.AFTER)}
    work(url, folder)
    assert old_auth.fingerprint(url) == new, "the next run completes it"


def test_a_point_that_is_not_reached_is_noticed(old_auth_copy: Callable[[], str], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="was not reached"):
        migration_victim.kill(migration_victim.apply, old_auth_copy(), tmp_path, Point(9_999, "", Moment.BEFORE))
