"""Which processes are there? For tests that must leave none.

Belongs here: looking. Does not: ending anything.
"""

from pathlib import Path

import psutil


def children(words: str) -> list[psutil.Process]:
    """This process's living children whose command line has these words."""
    found = []
    for child in psutil.Process().children():
        try:
            if words in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # just ended
            continue
    return found


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
