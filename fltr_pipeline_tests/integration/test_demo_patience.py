"""How long the demo waits: while anything moves on the stack, for its runs may have to wait for those of others."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fltr_pipeline.embedded import demo
from fltr_pipeline.embedded.demo import PATIENCE_SECONDS, DemoStalled, Scene
from fltr_pipeline.embedded.state import StackState
from fltr_pipeline.settings import Settings
from fltr_pipeline_tests.world import World

MOVE = "UPDATE documents SET status = 'failed' WHERE filename = %s"


def wait(world: World, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[int], None]) -> int:
    """Waits for a dataset of one file, with a clock that leaps most of the patience at each look; counts the looks."""
    payer = world.user()
    dataset = world.dataset(payer, "ours")
    world.upload(dataset, {"ours": b"x"})
    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        meanwhile(looks)

    monkeypatch.setattr("fltr_pipeline.embedded.demo._runs", lambda *_: [{"status": "SUCCESS"}])
    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: looks * PATIENCE_SECONDS * 0.6)
    monkeypatch.setattr("fltr_pipeline.embedded.demo.time", clock)
    state = StackState(home=Path(), ui="-", endpoints=Settings().endpoints)
    demo.wait(world.services, Scene("", payer, dataset, files=1), state, lambda *_: None)
    return looks


def test_it_waits_while_the_documents_of_others_move(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    others = world.dataset(world.user(), "others")
    world.upload(others, {str(n): b"x" for n in range(1, 5)})
    looks = wait(world, monkeypatch, lambda look: world.change(MOVE, str(look) if look < 5 else "ours"))
    assert looks == 5


def test_it_gives_up_when_nothing_moves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.upload(world.dataset(world.user(), "others"), {"theirs": b"x"})
    with pytest.raises(DemoStalled, match=r"nothing moved for 300 s; documents: .*'uploaded': 1"):
        wait(world, monkeypatch, lambda _: None)
