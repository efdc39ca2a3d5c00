"""Documents that were moved to another dataset: their files follow, and they are queued there.

Belongs here: the order of the two. Does not: what queueing means (stores.fltr.moved), taking over vectors (embed).
"""

from collections.abc import Sequence
from contextlib import suppress

from fltr_pipeline.errors import NotFound
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.sources import at_once
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import moved
from fltr_pipeline.stores.fltr.moved import Move

_BATCH = 100


def waiting(services: Services, document_ids: Sequence[str]) -> bool:
    """Whether one of these was moved and not followed yet. Primary keys alone, for a probe."""
    with transaction(services.fltr) as tx:
        return bool(moved.among(tx, document_ids))


def follow(services: Services, document_ids: Sequence[str]) -> int:
    """Queue those of them that were moved, on which nobody works, in their new dataset; returns how many.

    The files first: a worker there looks for them under the new dataset. Whoever moved them too is left alone.

    Raises:
        StoreUnavailable: a store does not answer; what was queued stays so.
    """
    with transaction(services.fltr) as tx:
        found = moved.among(tx, document_ids)
    followed = 0
    for some in (found[start : start + _BATCH] for start in range(0, len(found), _BATCH)):
        at_once(lambda m: _copy_file(services, m), some)
        with transaction(services.fltr) as tx:
            followed += moved.follow(tx, some)
    return followed


def _copy_file(services: Services, move: Move) -> None:
    """The old one stays where it is: files are not ours to delete."""
    blobs = services.blobs
    if blobs.locate(move.now, move.document_id) is None and (file := blobs.locate(move.before, move.document_id)):
        with suppress(NotFound):  # who moved the document is moving the file, too
            blobs.copy(file.key, move.now)
