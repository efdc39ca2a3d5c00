"""Documents that were moved to another dataset: their files follow, and they are queued there.

Belongs here: the order of the two, and files that can't follow. Does not: what queueing means (stores.fltr.moved),
taking over vectors (embed).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fltr_pipeline.errors import InvalidValue, NotFound, StoreUnavailable
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.sources import at_once
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import moved
from fltr_pipeline.stores.fltr.moved import Move

_LOG = logging.getLogger(__name__)
_BATCH = 16
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


def found(services: Services, document_ids: Sequence[str], *, put_off: bool = False) -> list[Move]:
    """Those of them that were moved and not followed yet, on which nobody works. Primary keys alone, for a probe.

    `put_off`: also those that were put off and are not yet due.
    """
    with transaction(services.fltr) as tx:
        return [m for m in moved.among(tx, document_ids) if m.due or put_off]


def follow(services: Services, document_ids: Sequence[str], *, put_off: bool = False) -> Iterator[Followed]:
    """Queue those of them that were moved in their new dataset, batch by batch; `put_off` as above.

    The files first: a worker there looks for them under its id. A document whose file can't be copied is told of and
    put off. Where it takes long to find that of a whole batch, the blob store does not answer, and the rest waits, too.
    """
    for start in range(0, len(document_ids), _BATCH):
        begun = time.monotonic()
        some = found(services, document_ids[start : start + _BATCH], put_off=put_off)
        copied = dict(zip(some, at_once(lambda m: _copy_file(services, m), some), strict=True))
        left = [m for m in some if not copied[m]]
        with transaction(services.fltr) as tx:
            documents = moved.follow(tx, [m for m in some if copied[m]])
            if left:
                moved.put_off(tx, left, seconds=_PUT_OFF_SECONDS)
        yield Followed(documents, len(left))
        if left and len(left) == len(some) and time.monotonic() - begun > _PATIENCE_SECONDS:
            break


def follow_arrivals(services: Services, dataset_id: str) -> None:
    """Follow the uploads that wait in a dataset and were moved to it, so that a run can take them."""
    with transaction(services.fltr) as tx:
        arrived = moved.arrived(tx, dataset_id)
    for _ in follow(services, arrived):
        pass


def _copy_file(services: Services, move: Move) -> bool:
    """Whether the document's newest file is in its new dataset, or there is none. The old one is not ours to delete."""
    blobs = services.blobs
    try:
        file, there = (blobs.locate(dataset_id, move.document_id) for dataset_id in (move.before, move.now))
        if file and (there is None or there.uploaded_at < file.uploaded_at):
            with suppress(NotFound):  # who moved the document is moving the file, too
                blobs.copy(file, move.now)
    except (StoreUnavailable, InvalidValue) as error:
        _LOG.warning(
            "document %s was moved from dataset %s to %s, but its file can't be copied there; it waits as it is and is "
            "tried again after %.0f minutes: %s",
            move.document_id, move.before, move.now, _PUT_OFF_SECONDS / 60, error,
        )  # fmt: skip
        return False
    return True
