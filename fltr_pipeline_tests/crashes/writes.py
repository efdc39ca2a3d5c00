"""All that a worker writes, to whatever store: statements and COMMITs, Milvus' calls, files of the blob store.

Belongs here: making each a step of the probe, in the process that dies. Does not: what a step or a point is (points).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.pipeline import extract
from fltr_pipeline.stores.vectors.client import MilvusServer
from fltr_pipeline_tests.crashes.engine import ParserHere
from fltr_pipeline_tests.crashes.hands import Hands
from fltr_pipeline_tests.crashes.points import Moment, Probe, write_name

_ROWS = {"insert": "data", "upsert": "data", "delete": "filter"}
"""Calls of Milvus that take rows, and the argument that has them, or their keys as an expression."""
_KEYS = "key in "

_CHANGES = {"create_collection", "create_index", "drop_collection", "release_collection", "create_alias", "alter_alias"}


def watch(probe: Probe, hands: Hands) -> None:
    """Each write is a step; this process patches itself for the rest of its life."""
    extract.ParserPool = ParserHere  # type: ignore[assignment,attr-defined]
    probe.watch(hands.services.fltr, "fltr", write_name)
    probe.watch(hands.services.ledger.engine, "fltr_auth", write_name)
    MilvusServer.call = _calls(probe, MilvusServer.call)  # type: ignore[method-assign]
    MilvusServer.load = _step(probe, "milvus", "load", MilvusServer.load)  # type: ignore[method-assign]
    os.fsync = _step(probe, "blobs", "fsync", os.fsync)
    Path.replace = _step(probe, "blobs", "replace", Path.replace)  # type: ignore[method-assign]


def _step(probe: Probe, store: str, name: str, write: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*arguments: Any, **named: Any) -> Any:
        probe.begin(store, name)
        result = write(*arguments, **named)
        probe.reach(Moment.AFTER)
        return result

    return watched


def _calls(probe: Probe, call: Callable[..., Any]) -> Callable[..., Any]:
    def watched(server: MilvusServer, method: str, collection: str, **arguments: Any) -> Any:
        if method not in _ROWS:
            write = call if method not in _CHANGES else _step(probe, "milvus", method, call)
            return write(server, method, collection, **arguments)
        given = arguments[_ROWS[method]]
        rows = json.loads(given.removeprefix(_KEYS)) if method == "delete" else given
        probe.begin("milvus", f"{method} {len(rows)}")
        if probe.at(Moment.HALF):
            half = rows[: len(rows) // 2]
            half = _KEYS + json.dumps(half) if method == "delete" else half
            call(server, method, collection, **arguments | {_ROWS[method]: half})
            probe.reach(Moment.HALF)
        result = call(server, method, collection, **arguments)
        if probe.at(Moment.LOST):
            raise StoreUnavailable(f"Milvus: the answer to {method} was lost")
        probe.reach(Moment.AFTER)
        return result

    return watched
