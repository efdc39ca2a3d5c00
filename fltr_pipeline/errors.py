"""Every error that this package raises on purpose, in one tree.

    FltrError
    ├── ConfigurationError          a setting is missing, wrong or half given
    ├── TransientError              may go away by itself: retry with backoff
    │   ├── StoreUnavailable        a database, Milvus or the blob store does not answer
    │   └── DatabaseBusy            other sessions hold on to tables that a command needs for itself
    ├── SchemaDrift                 a database is not as the specification says
    ├── MigrationRefused            a database's state or rows forbid the migration; nothing was changed
    ├── RebuildRefused              work is under way, or this is not the database to rebuild; nothing was dropped
    ├── UnsupportedCapability       the server can't do what was asked (BM25 on an old Milvus)
    ├── StackError                  the embedded stack can't start or stop a service
    ├── NotFound                    no such dataset, user or document
    ├── WindowExceeded              a text has more tokens than the embedding model reads
    ├── InvalidValue                an id, vector or text that a store can't be given: a caller's mistake
    ├── DocumentError               permanent, this document's own: its status becomes `failed`
    │   ├── Encrypted  Corrupt  Unsupported  Empty  NoTextLayer
    │   ├── TooLarge  TimeLimit  MemoryLimit  ParserCrash
    │   ├── Quarantined             its bytes ended workers or parsers before, it isn't tried again
    │   ├── MissingUpload
    │   └── Inaccessible            the blob store has it, but does not give it; tried again before it fails
    └── CreditError                 the ledger says no
        ├── InvalidAmount           ≤ 0, above the cap, or beyond int4
        ├── ForeignPayer            the upload names an API key of another account
        ├── PayerGone               the user was deleted, and the hold with them
        ├── PotGone                 the balance row was deleted while the payer still exists
        └── LedgerConflict          a row under an id of ours says something else than we wrote

A message says what failed, on which document, why, and what to do. No message carries a secret.
Retry policies look at the type (`TransientError` or not), never at the text.
"""

from typing import ClassVar


class FltrError(Exception):
    """Root of all errors raised on purpose."""


class ConfigurationError(FltrError):
    """A setting is missing, wrong or half given."""


class TransientError(FltrError):
    """May go away by itself; the work is retried with backoff."""


class StoreUnavailable(TransientError):
    """A database, Milvus or the blob store does not answer."""


class DatabaseBusy(TransientError):
    """Other sessions hold on to tables that a command needs for itself; the message names them."""


class SchemaDrift(FltrError):
    """A database is not as the specification says; `fltr-pipeline db verify` lists the differences."""


class MigrationRefused(FltrError):
    """A database's state or rows forbid its migration, or a check failed; nothing was changed."""


class RebuildRefused(FltrError):
    """Work is under way in `fltr`, or this is not the database that was meant; nothing was dropped."""


class UnsupportedCapability(FltrError):
    """The connected server can't do what was asked."""


class StackError(FltrError):
    """The embedded stack can't start or stop a service; the message says where its log is."""


class NotFound(FltrError):
    """No such dataset, user or document."""


class InvalidValue(FltrError, ValueError):
    """An id, vector or text that a store can't be given; a caller's mistake, never worth a retry."""


class WindowExceeded(FltrError):
    """A text has more tokens than the embedding model reads; it is never cut silently."""


class DocumentError(FltrError):
    """A permanent failure that belongs to one document. `code` is stable and stored with the document."""

    code: ClassVar[str] = "document_error"
    user_error: ClassVar[bool] = True
    """Whether the customer's file is the cause (refund policy), as opposed to our parser."""


class Encrypted(DocumentError):
    """Needs a password that we don't have."""

    code = "encrypted"


class Corrupt(DocumentError):
    """Damaged beyond reading."""

    code = "corrupt"


class Unsupported(DocumentError):
    """Of a kind that we don't read."""

    code = "unsupported"


class Empty(DocumentError):
    """Has no bytes, or nothing but white space."""

    code = "empty"


class NoTextLayer(DocumentError):
    """Has pages but no text on any of them (a scan)."""

    code = "no_text_layer"


class TooLarge(DocumentError):
    """Above the size, page or text limit."""

    code = "too_large"


class TimeLimit(DocumentError):
    """Parsing took longer than the limit."""

    code = "time_limit"


class MemoryLimit(DocumentError):
    """Parsing took more memory than the limit."""

    code = "memory_limit"


class ParserCrash(DocumentError):
    """The parser process died."""

    code = "parser_crash"
    user_error = False


class Quarantined(DocumentError):
    """Not tried: the same bytes ended workers or parsers before."""

    code = "quarantined"
    user_error = False


class MissingUpload(DocumentError):
    """Marked as uploaded, but there is neither a blob nor inline text."""

    code = "missing_upload"


class Inaccessible(DocumentError):
    """The blob store answers, but does not give this document's bytes: forbidden, archived, a bad sector."""

    code = "inaccessible"
    user_error = False
    tries: ClassVar[int] = 10
    """Attempts in a row that may end so, over half an hour, before the document fails."""


class CreditError(FltrError):
    """The ledger refuses."""


class InvalidAmount(CreditError):
    """An amount that is not positive, above the cap, or beyond int4."""

    code: ClassVar[str] = "invalid_amount"


class ForeignPayer(CreditError):
    """The upload names an API key that belongs to another account than the dataset."""

    code: ClassVar[str] = "foreign_payer"


class PayerGone(CreditError):
    """The user was deleted; the database took the hold with them."""


class PotGone(CreditError):
    """The balance row was deleted while the payer still exists."""


class LedgerConflict(CreditError):
    """A row under an id of ours says something else than we wrote: the ledger was changed by hand."""

    code: ClassVar[str] = "ledger_conflict"
