"""The cases of a crash matrix, from its list of steps.

Belongs here: reading a list, crossing its points with who goes on, drawing some. Does not: what a case does.
"""

import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from fltr_pipeline_tests.crashes.points import Point, Step
from fltr_pipeline_tests.seed import SEED

_Recovery = TypeVar("_Recovery")


def listed(file: Path) -> dict[str, list[Step]]:
    """Operation → its steps, as the file has them."""
    steps: dict[str, list[Step]] = {}
    name = ""
    for line in file.read_text().splitlines():
        if line.startswith(" "):
            steps[name].append(Step.parse(line.strip()))
        else:
            name = line
            steps[name] = []
    return steps


def cases(file: Path, recoveries: Iterable[_Recovery], short: int) -> list[tuple[str, Point, _Recovery]]:
    """What is done, where it dies, who goes on: all in the long form, or `short` of them, drawn by the seed."""
    who = list(recoveries)
    every = [
        (name, Point(step, moment), recovery)
        for name, steps in listed(file).items()
        for step in steps
        for moment in step.moments
        for recovery in who
    ]
    return every if os.environ.get("FLTR_FAULTS") == "long" else random.Random(SEED).sample(every, short)
