"""Documents that were moved to another dataset: their files follow, and they are queued there.

Belongs here: the order of the two, and files that can't follow. Does not: what queueing means (stores.fltr.moved),
taking over vectors (embed).
"""

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fltr_pipeline.errors import FltrError, Inaccessible, InvalidValue, NotFound, StoreUnavailable
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.sources import at_once
from fltr_pipeline.stores.blobs import Blob
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import moved
from fltr_pipeline.stores.fltr.locks import lock_unheld
from fltr_pipeline.stores.fltr.moved import Move

_LOG = logging.getLogger(__name__)
_BATCH = 16
_LOOK = 2_000
_PUT_OFF_SECONDS = 300.0
_PATIENCE_SECONDS = 10.0
"""A blob store that refuses says so at once."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What became of a batch of moved documents."""

    documents: int = 0
    """Queued in their new dataset."""
    held: int = 0
    """Left for later, because their files can't be copied."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A document whose file is not in its new dataset."""

    why: str
    answers: bool
    """Whether the blob store does at all: if not, that is none of the document's own."""


def found(services: Services, document_ids: Sequence[str], *, put_off: bool = False) -> list[Move]:
    """Those of them that were moved and not followed yet, and nobody holds. Primary keys alone, for a probe.

    `put_off`: also those that were put off and are not yet due.
    """
    return [m for m, is_free in _moved(services, document_ids, put_off=put_off) if is_free]


def _moved(services: Services, document_ids: Sequence[str], *, put_off: bool) -> list[tuple[Move, bool]]:
    """Those of them that were moved and not followed yet, each with whether nobody holds its row."""
    with transaction(services.fltr) as tx:
        due = {m.document_id: m for m in moved.among(tx, document_ids) if m.due or put_off}
        free = set(lock_unheld(tx, list(due))) if due else set[str]()
    return [(m, i in free) for i, m in due.items()]


def follow(services: Services, document_ids: Sequence[str], *, put_off: bool = False) -> Iterator[Followed]:
    """Queue those of them that were moved in their new dataset, batch by batch; `put_off` as above.

    The files first: a worker there looks for them under its id. A document whose file can't be copied is told of and
    put off; when that was refused too often, it follows without. Where it takes long to find that of a whole batch,
    the blob store does not answer, and the rest is put off, too. So is a document whose row somebody holds: run after
    run would be launched for it.
    """
    for start in range(0, len(document_ids), _BATCH):
        begun = time.monotonic()
        batch = _moved(services, document_ids[start : start + _BATCH], put_off=put_off)
        some, in_use = [m for m, is_free in batch if is_free], [m for m, is_free in batch if not is_free]
        held = {m: h for m, h in zip(some, at_once(lambda m: _copy_file(services, m), some), strict=True) if h}
        lost = {m: h.why for m, h in held.items() if h.answers and m.refusals + 1 >= Inaccessible.tries}
        left = {m: h.why if h.answers else None for m, h in held.items() if m not in lost}
        _tell(held, lost)
        silent = bool(left) and len(left) == len(some) and time.monotonic() - begun > _PATIENCE_SECONDS
        if silent:
            left |= dict.fromkeys(found(services, document_ids[start + _BATCH :], put_off=put_off))
        useless = _useless_keys(services, some)
        with transaction(services.fltr) as tx:
            here = [m for m in some if m not in left]
            documents = moved.follow(tx, here, without_file=lost, without_key=useless)
            if left or in_use:
                moved.put_off(tx, left | dict.fromkeys(in_use), seconds=_PUT_OFF_SECONDS)
        yield Followed(documents, len(left))
        if silent:
            break


def follow_departures(services: Services, dataset_id: str, limit: int) -> None:
    """Follow up to `limit` of what waits at a step of a dataset and was moved out of it: no run can take it there.

    It looks at all that waits: for a run that found nothing it could take.
    """
    with transaction(services.fltr) as tx:
        waiting = moved.waiting(tx, dataset_id)
    departed = list[str]()
    for start in range(0, len(waiting), _LOOK):
        departed += [m.document_id for m, _ in _moved(services, waiting[start : start + _LOOK], put_off=False)]
        if len(departed) >= limit:
            break
    for _ in follow(services, departed[:limit]):
        pass


def follow_arrivals(services: Services, dataset_id: str) -> None:
    """Follow the uploads that wait in a dataset and were moved to it, so that a run can take them."""
    with transaction(services.fltr) as tx:
        arrived = moved.arrived(tx, dataset_id)
    for _ in follow(services, arrived):
        pass


def _useless_keys(services: Services, moves: Sequence[Move]) -> dict[str, str]:
    """Document id → digest of the API key that its upload names and that is none of its new owner's.

    It is the old one's, and pays for nothing there. One of the new owner's was named when it was uploaded there. Where
    that owner has no account, nothing can be said of any key.
    """
    with transaction(services.fltr) as tx:
        named = moved.upload_keys(tx, moves)
    owners = {owner for _, _, owner in named}
    usable = {o: services.ledger.payers(o, {key for _, key, owner in named if owner == o}) for o in owners}
    return {document_id: key for document_id, key, owner in named if usable[owner] and key not in usable[owner]}


def _copy_file(services: Services, move: Move) -> _Held | None:
    """None: the document's newest file is in its new dataset, or there is none. The old one is not ours to delete."""
    blobs = services.blobs
    there = None
    try:
        there = blobs.locate(move.now, move.document_id)
        file = blobs.locate(move.before, move.document_id)
        if file and (there is None or there.uploaded_at < file.uploaded_at):
            with suppress(NotFound):  # who moved the document is moving the file, too
                blobs.copy(file, move.now)
    except (StoreUnavailable, InvalidValue) as error:
        if there and _is_new(move, there):
            return None
        return _held(services, move, error)
    return None


def _is_new(move: Move, there: Blob) -> bool:
    """Whether a file in the new dataset was uploaded there for what waits, not for what was claimed before that."""
    since = move.uploaded_since
    return since is not None and not there.is_copy and there.uploaded_at > since.timestamp() * 1_000_000


def _held(services: Services, move: Move, error: FltrError) -> _Held:
    why = (
        f"its file can't be copied from dataset {move.before}, from which the document was moved: {error}; let "
        "FLTR_BLOB_URL's role read and write there, or upload the file again"
    )
    try:
        services.blobs.check()
    except StoreUnavailable:
        return _Held(why, answers=False)
    return _Held(why, answers=True)


def _tell(held: Mapping[Move, _Held], lost: Collection[Move]) -> None:
    for move, h in held.items():
        then = "it follows without" if move in lost else f"it is tried again in {_PUT_OFF_SECONDS / 60:.0f} minutes"
        _LOG.warning(
            "document %s was moved from dataset %s to %s: %s; %s",
            move.document_id, move.before, move.now, h.why, then,
        )  # fmt: skip
