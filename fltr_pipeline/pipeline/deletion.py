"""Deleted documents, datasets and users: out of work, out of the manifest, and a receipt once their vectors are gone.

Belongs here: finding what is gone in both databases, and withdrawing it batch by batch. Does not: deleting from Milvus
(embed.sweep), holds (expiry), search, which looks for itself, following what was moved and is found on the way (moves).

Any number of passes may run beside workers and each other, and die anywhere: each batch is one transaction of `fltr`
that names the keys to sweep, and a receipt is given only when the last of them was read back as absent.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.pipeline import moves
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets, deleted, requeue
from fltr_pipeline.stores.fltr.deleted import Page, Receipt

PAGE = 2_000
"""Documents looked at in one read: for many more, PostgreSQL would rather sort them all than follow an index."""
_BATCH = 100
_OWNER_GONE = (
    "the owner of its dataset has no account in fltr_auth any more, so it is not searchable: delete the dataset, or "
    "give it an owner"
)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What was found to be gone, and taken out of the manifest."""

    documents_deleted: int = 0
    """By themselves or with their dataset."""
    datasets_deleted: int = 0
    documents_ownerless: int = 0
    """Their dataset's owner is gone."""
    documents_restored: int = 0
    """Their dataset has an owner again: queued, free of charge."""
    documents_moved: int = 0
    """To another dataset: queued there; what was searchable is so again free of charge."""
    files_not_copied: int = 0
    """Of documents that were moved and are therefore left for later."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """What became of a page of documents."""

    forgotten: int
    restored: int
    moved: frozenset[str]
    left: int
    """Gone, but somebody works on them, or ends them, too."""

    @property
    def withdrawn(self) -> Withdrawn:
        return Withdrawn(documents_deleted=self.forgotten, documents_restored=self.restored)

    @property
    def found(self) -> bool:
        return bool(self.forgotten or self.restored or self.moved)


def withdraw(
    services: Services, *, after: str = "", patience: float = math.inf
) -> Iterator[tuple[Withdrawn, frozenset[str]]]:
    """Withdraw what is gone and on which nobody works, part by part; what was moved is the caller's to follow.

    Documents that are gone by themselves, or moved, are looked for behind the id `after`, until nothing was found for
    `patience` seconds; then what was put off counts for nothing. What is gone with its dataset or owner is found first;
    a dataset is forgotten only behind its last document, since nothing else says where to look for that.

    Raises:
        ConfigurationError: as `datasets_without_owner`; nothing was withdrawn.
        StoreUnavailable: a database does not answer; what was withdrawn stays so, the next pass goes on.
    """
    ownerless, whole = datasets_without_owner(services), patience == math.inf
    for withdrawn in _withdraw_ownerless(services, ownerless):
        yield Withdrawn(documents_ownerless=withdrawn), frozenset()
    emptied = []
    for dataset_id in _gone_datasets(services):
        left = 0
        for some in _pages_of(services, dataset_id):
            ended = _end(services, some, ownerless, whole=whole)
            left += ended.left
            yield ended.withdrawn, ended.moved
        if not left:
            emptied.append(dataset_id)
    found_at = time.monotonic()
    for some in pages(services, after):
        ended = _end(services, some, ownerless, whole=whole)
        if ended.found:
            found_at = time.monotonic()
        elif time.monotonic() - found_at >= patience:
            break
        looked_at = time.monotonic()
        yield ended.withdrawn, ended.moved
        found_at += time.monotonic() - looked_at
    with transaction(services.fltr) as tx:
        datasets_gone = deleted.forget_datasets(tx, emptied)
    yield Withdrawn(datasets_deleted=datasets_gone), frozenset()


def receipts(services: Services) -> list[Receipt]:
    """Give the receipts of deletions whose vectors are all swept."""
    with transaction(services.fltr) as tx:
        return deleted.verify(tx)


def waiting(services: Services) -> bool:
    """Whether a dataset is deleted, or has lost its owner and is not withdrawn. Indexed reads, for a probe.

    Of the latter it asks as a pass does, under the same locks: what that would leave is nothing to launch one for.
    """
    if gone := _gone_datasets(services):
        with transaction(services.fltr) as tx:
            if set(gone) - deleted.in_hand(tx, gone) or deleted.not_empty(tx, gone):
                return True
    ownerless = datasets_without_owner(services)
    for some in _documents_of(services, ownerless):
        with transaction(services.fltr) as tx:
            if deleted.withdrawable(tx, some, set(ownerless.values())):
                return True
    return False


def page(services: Services, after: str) -> Page:
    """A part of the documents that `pipeline` knows, and which of them are gone. Indexed reads, for a probe."""
    with transaction(services.fltr) as tx:
        return deleted.page(tx, after, PAGE)


def pages(services: Services, after: str = "") -> Iterator[Page]:
    """All documents that `pipeline` knows, behind that id, and on which nobody works, and which of them are gone."""
    while (found := page(services, after)).last:
        yield found
        after = found.last


def _gone_datasets(services: Services) -> list[str]:
    with transaction(services.fltr) as tx:
        return deleted.gone_datasets(tx)


def _pages_of(services: Services, dataset_id: str) -> Iterator[Page]:
    """Its documents that are searchable or at work; the others have no vectors, and their turn will come."""
    after = ""
    while True:
        with transaction(services.fltr) as tx:
            found = deleted.page_of(tx, dataset_id, after, PAGE)
        if not found.last:
            break
        yield found
        after = found.last


def datasets_without_owner(services: Services) -> dict[str, str]:
    """Datasets whose owner has no account, by id, and that owner. By now it may be another: `fltr` was asked first.

    Raises:
        ConfigurationError: none of several owners has one, so `fltr_auth` is rather that of another deployment.
    """
    with transaction(services.fltr) as tx:
        found = datasets.every(tx)
    owners = {d.user_id for d in found}
    gone = owners - services.ledger.existing_users(owners)
    if len(gone) > 1 and gone == owners:
        raise ConfigurationError(
            f"none of the {len(gone)} owners of datasets has an account in fltr_auth, so nothing is swept: see "
            "that FLTR_AUTH_DATABASE_URL and FLTR_DATABASE_URL belong together; if all of them are gone, delete "
            "their datasets"
        )
    return {d.id: d.user_id for d in found if d.user_id in gone}


def _documents_of(services: Services, ownerless: Mapping[str, str]) -> Iterator[Sequence[str]]:
    """What is to be withdrawn of these datasets, batch by batch, and what somebody works on, holds or has moved."""
    if ownerless:
        with transaction(services.fltr) as tx:
            found = deleted.not_empty(tx, ownerless)
        for dataset_id in found:
            for page in _pages_of(services, dataset_id):
                yield from _batches(page.document_ids)


def _withdraw_ownerless(services: Services, ownerless: Mapping[str, str]) -> Iterator[int]:
    for some in _documents_of(services, ownerless):
        with transaction(services.fltr) as tx:
            withdrawn = deleted.withdraw(tx, some, set(ownerless.values()), _OWNER_GONE)
        yield withdrawn


def _end(services: Services, page: Page, ownerless: Mapping[str, str], *, whole: bool) -> _Ended:
    gone = sum(_forget(services, some) for some in _batches(sorted(page.gone)))
    with transaction(services.fltr) as tx:
        back = requeue.restore(tx, page.document_ids, but_of=list(ownerless))
    moved = moves.found(services, page.document_ids, put_off=whole)
    return _Ended(gone, back, frozenset(m.document_id for m in moved), len(page.gone) - gone)


def _forget(services: Services, document_ids: Sequence[str]) -> int:
    with transaction(services.fltr) as tx:
        return deleted.forget(tx, document_ids)


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH))
