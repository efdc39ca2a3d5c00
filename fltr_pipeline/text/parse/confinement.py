"""What a parser process may do: read its own program, and compute. No network, no other file, no other process.

Belongs here: limits that the process puts on itself, before the first file. Does not: time, which its parent keeps.
"""

import os
import resource
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from fltr_pipeline.text.parse import landlock

_MOST_WRITTEN = 16 << 20
"""Bytes that may be written to any file; the only one is the process's standard error, kept in memory by its parent."""

_FORBIDDEN = (
    *("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.", "shutil."),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "tempfile.", "urllib."),
)
"""Audit events, by their beginnings."""

_LIBRARIES = (
    *("/usr", "/lib", "/lib64", "/opt", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/localtime"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system", "/dev/null", "/dev/urandom"),
)
"""What the dynamic linker and native libraries read of a system."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def confine(memory_mb: int) -> None:
    """For the rest of the process's life: `memory_mb` MiB of address space, no core files, no files written or created.

    Python code, the parsers' included, can read below the folders that it is imported from and nowhere else. It can
    open no connection and start no process. Native code can read there and where the system's libraries are, open no
    TCP connection and start no program, where there is Landlock and packages are no links to files elsewhere; else its
    own options have to do.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write too many is an error, not a death
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_WRITTEN, _MOST_WRITTEN))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    folders = {*sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix}
    readable = tuple(f"{path}{os.sep}" for folder in folders if folder for path in _spellings(folder))

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int):
                return
            name = os.fsdecode(path) if isinstance(path, str | bytes) else ""
            if (isinstance(flags, int) and flags & _WRITING) or not os.path.normpath(name).startswith(readable):
                raise PermissionError(f"a parser may not open {name!r}")
        elif event.startswith(_FORBIDDEN):
            raise PermissionError(f"a parser may not do {event}")

    if not _packages_are_links(readable):
        libraries = filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
        landlock.read_only([*folders, *_LIBRARIES, *libraries])
    sys.addaudithook(hook)


def _packages_are_links(readable: tuple[str, ...]) -> bool:
    """To files elsewhere, as some installers make them: Landlock, which goes by files, would hide all of them."""
    found = find_spec("pypdfium2")
    return bool(found and found.origin and not str(Path(found.origin).resolve()).startswith(readable))


def _spellings(folder: str) -> set[str]:
    return {os.path.abspath(folder), str(Path(folder).resolve())}  # noqa: PTH100  as imports spell it, links and all
