"""Landlock: a Linux process gives up, for good, the files that it does not need; native code included.

Belongs here: three system calls, which Python does not wrap. Does not: what is given up (`confinement`).
"""

import ctypes
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""The same on every architecture."""

_ASK_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILES = (1 << 13) - 1
"""To execute, write, read, list, remove and make files of all kinds: what the first version knows."""

_TCP = 0b11
"""To bind and to connect."""

_TCP_VERSION = 4


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def read_only(paths: Iterable[str]) -> bool:
    """Leave this process the files below `paths`, to read; no other file, no program to start, no TCP connection.

    False, and nothing has changed, where there is no Landlock: Linux before 5.13 (TCP: 6.7), some containers.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return False
    wanted = _Ruleset(_FILES, _TCP)
    size = ctypes.sizeof(wanted) if version >= _TCP_VERSION else ctypes.sizeof(ctypes.c_uint64)
    rules = libc.syscall(_CREATE_RULESET, ctypes.byref(wanted), ctypes.c_size_t(size), 0)
    if rules < 0:
        return False
    try:
        for path in paths:
            with suppress(OSError):  # it is not there
                _allow(libc, rules, path)
        no_new_rights = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        return bool(no_new_rights and libc.syscall(_RESTRICT_SELF, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str) -> None:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = _READ_FILE | _READ_DIR if Path(path).is_dir() else _READ_FILE
        libc.syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, ctypes.byref(_PathBeneath(rights, folder)), 0)
    finally:
        os.close(folder)
