"""Which processes are there? For tests that must leave none.

Belongs here: looking. Does not: ending anything.
"""

from pathlib import Path

import psutil


def traces(home: Path) -> list[psutil.Process]:
    """Every process that mentions the home folder anywhere."""
    found = []
    for process in psutil.process_iter():
        try:
            seen = [*process.cmdline(), *process.environ().values(), process.cwd()]
        except psutil.Error:
            continue
        if any(str(home) in text for text in seen):
            found.append(process)
    return found
