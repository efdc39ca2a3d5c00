"""What the numbers were measured on. Belongs here: naming hardware and versions. Does not: measuring."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable


def machine(packages: Iterable[str]) -> str:
    """One line: cores, architecture, load before the run, versions of Python and of `packages`."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, load average {os.getloadavg()[0]:.1f} before, "
        f"Python {platform.python_version()}, {versions}"
    )
