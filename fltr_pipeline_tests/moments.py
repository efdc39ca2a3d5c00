"""What happens in the middle of something else. Belongs here: at which moment. Does not: what happens."""

import time
from collections.abc import Callable
from typing import Any

import pytest


class Killed(BaseException):
    """Whoever is at work dies here."""


def dies(*_: object, **__: object) -> None:
    """For a function that is not come back from."""
    raise Killed


def wait_for(it: Callable[[], bool]) -> None:
    """Until it is so, in another thread, process or server; fails after a minute."""
    deadline = time.monotonic() + 60
    while not it():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def before(patch: pytest.MonkeyPatch, nth: int, owner: object, name: str, act: Callable[[], object]) -> list[str]:
    """`act` right before the `nth` call of `owner`'s function of that name; the calls so far, as they come."""
    real, calls = getattr(owner, name), list[str]()

    def watched(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == nth:
            act()
        return real(*args, **options)

    patch.setattr(owner, name, watched)
    return calls
