"""Poison: contents that end workers or parsers again and again are not tried any more.

Belongs here: when that is so, and what is told of it. Does not: who dies at what (stores.fltr.claims), SQL.

A content is known by its bytes, so that another upload of them fails at once. Other bytes, another extractor, other
limits, or a reprocessing that a person asks for let it in again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from fltr_pipeline.errors import MemoryLimit, NotFound, ParserCrash, Quarantined, StoreUnavailable, TimeLimit
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import quarantine as store
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.quarantine import Content, Record

GAVE_UP = "gave_up"
"""The code of a document at which too many workers died."""

_PARSER_ENDINGS = (TimeLimit, MemoryLimit, ParserCrash)
_PARSES = 2
"""A loaded machine, too, ends a parser: only what fails twice in a row is taken for the content's own failure."""

_WORDS = {
    GAVE_UP: "workers died at it",
    TimeLimit.code: "parsing takes longer than FLTR_PARSE_SECONDS",
    MemoryLimit.code: "parsing takes more memory than FLTR_PARSE_MEMORY_MB",
    ParserCrash.code: "the parser dies of it",
}


@dataclass(frozen=True)
class Quarantine:
    """What the stages ask before they try a document, and tell when it ended somebody."""

    services: Services

    def among(self, sizes: Sequence[int]) -> Mapping[str, Record]:
        """What not to try of contents of these sizes (bytes), by digest."""
        with transaction(self.services.fltr) as tx:
            return store.of_sizes(tx, sizes, self.services.tried_with)

    def of_extracted(self, claimed: Sequence[Claim]) -> dict[str, Quarantined]:
        """Documents past their extraction that are not to be tried any further, by id."""
        with transaction(self.services.fltr) as tx:
            found = store.of_claims(tx, claimed, self.services.tried_with)
            for claim in claimed:
                if record := found.get(claim.document_id):
                    store.mark(tx, claim, record.sha256)
        return {c.document_id: _told(c, found[c.document_id]) for c in claimed if c.document_id in found}

    def turn_away(self, claim: Claim, record: Record) -> Quarantined:
        """The error that ends the attempt before it is begun."""
        with transaction(self.services.fltr) as tx:
            store.mark(tx, claim, record.sha256)
        return _told(claim, record)

    def parser_ended(self, claim: Claim, content: Content, error: Exception) -> None:
        """Remember a failure that would cost as much the next time; any other is none of ours."""
        if isinstance(error, _PARSER_ENDINGS):
            self._remember(claim, content, error.code, tries=1, allowed=_PARSES)

    def parsed(self, tx: Connection, digests: Sequence[str]) -> None:
        """These contents came through their parser: only failures in a row count against one."""
        store.forgive(tx, digests, self.services.tried_with)

    def workers_died(self, claim: Claim) -> None:
        """Remember that as many workers as are allowed died at the document, alone in their hands.

        Raises:
            StoreUnavailable: the blob store does not answer.
        """
        if (content := self._content(claim)) is not None:
            self._remember(claim, content, GAVE_UP, tries=claim.attempts, allowed=1)

    def _remember(self, claim: Claim, content: Content, code: str, *, tries: int, allowed: int) -> None:
        with transaction(self.services.fltr) as tx:
            store.remember(
                tx, claim, content, tried_with=self.services.tried_with, code=code, tries=tries, allowed=allowed
            )

    def _content(self, claim: Claim) -> Content | None:
        """By the digest alone: whoever reads all of it may be the next to die."""
        blobs = self.services.blobs
        with transaction(self.services.fltr) as tx:
            if (staged := store.staged_content(tx, claim)) is not None:
                return staged
        try:
            if (key := blobs.find(claim.dataset_id, claim.document_id)) is not None:
                return Content(*blobs.digest(key))
        except NotFound:
            return None
        except StoreUnavailable:
            blobs.check()  # it may refuse this one alone, and then nobody reads the content
            return None
        with transaction(self.services.fltr) as tx:
            return store.inline_content(tx, claim.document_id)


def _told(claim: Claim, record: Record) -> Quarantined:
    times = "once" if record.tries == 1 else f"{record.tries} times"
    return Quarantined(
        f"{claim.filename}: not tried, because a file of the same bytes failed {times}, last on "
        f"{record.failed_at:%Y-%m-%d}: {_WORDS.get(record.code, record.code)}; upload another version of it, or "
        "mend the cause and reprocess the dataset"
    )
