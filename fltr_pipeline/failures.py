"""What a failure's code means, and what to do about it: a sentence for the customer, one for the operator.

Belongs here: every code that a failed document can carry, and which of them another night may mend. Does not: raising
errors (`errors`); what exactly failed, which the message says. `docs/formats.md` shows the same table; a test
compares them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about one kind of failure."""

    customer: str
    operator: str


_NOTHING = "Nothing: the file is the cause."
_REPROCESS = "Mend the cause, then reprocess the dataset with mode `failed`."

ADVICE: Mapping[str, Advice] = {
    "encrypted": Advice("The file needs a password: upload a version without one.", _NOTHING),
    "corrupt": Advice("The file is damaged: save it again, or export it anew, and upload that.", _NOTHING),
    "unsupported": Advice(
        "Files of this kind are not read: save it as PDF, or as one of the kinds that the message lists.",
        "Nothing, unless many customers ask for that kind: a format is one module in `text/parse/formats`.",
    ),
    "empty": Advice("There is no text in the file: upload the one that was meant.", _NOTHING),
    "no_text_layer": Advice(
        "The file holds only pictures of pages: upload a version with a text layer (OCR).",
        "Nothing, or turn `FLTR_OCR` on: `nightly_backfill` then tries these files again.",
    ),
    "too_large": Advice(
        "The file, or the text in it, is too large: split it.",
        "Raise `FLTR_MAX_DOCUMENT_MB` if such files are to be accepted.",
    ),
    "time_limit": Advice(
        "Reading the file took too long: split it, or save it in a simpler form.",
        "Raise `FLTR_PARSE_SECONDS` if the machine was slow rather than the file a bomb.",
    ),
    "memory_limit": Advice(
        "Reading the file took too much memory: split it, or save it in a simpler form.",
        "Raise `FLTR_PARSE_MEMORY_MB` if such files are to be accepted.",
    ),
    "parser_crash": Advice(
        "Reading the file failed by our fault; nothing was charged: save it in another form, or ask us.",
        "A bug in a parser: keep the file for its maintainers; `nightly_backfill` tries again.",
    ),
    "missing_upload": Advice(
        "The file did not arrive: upload it again.",
        "See why the uploader marked the document as `uploaded` before the file was in the blob store.",
    ),
    "inaccessible": Advice(
        "The file could not be read from our storage by our fault; nothing was charged: wait, or upload it again.",
        "Let the role of `FLTR_BLOB_URL` read it, or restore it from the archive; `nightly_backfill` tries again.",
    ),
    "file_not_copied": Advice(
        "The file could not be brought along to another dataset by our fault; nothing was charged: upload it again.",
        "Let the role of `FLTR_BLOB_URL` read it; put it in the new dataset's folder; reprocess with mode `failed`.",
    ),
    "foreign_payer": Advice(
        "The upload names an API key of another account: upload it with a key of yours, or without one.",
        "See which application attached the key; the message has the beginning of its digest.",
    ),
    "payer_gone": Advice(
        "The account that was to pay no longer exists.", "Give the dataset an owner with a balance, or delete it."
    ),
    "pot_gone": Advice(
        "The balance that was to pay was deleted: ask for the document to be processed again.",
        "See who deleted the row in `fltr_auth`; after that, reprocess: whoever pays now is asked.",
    ),
    "ledger_conflict": Advice(
        "The charge for the document could not be recorded; nothing was charged.",
        "A ledger row was changed by hand: `fltr-pipeline credits audit` names it.",
    ),
    "invalid_amount": Advice(
        "A step of the document's processing would cost more than is charged at once; nothing was charged: split it.",
        "See whether `FLTR_PRICES__*` are as they are meant, and the amount in the message.",
    ),
    "quarantined": Advice(
        "Files with the same bytes made processing fail by our fault again and again; nothing was charged.",
        "Keep the file for the parser's maintainers. It is tried again under a new extractor, or if a person asks.",
    ),
    "internal_error": Advice("Processing failed by our fault; nothing was charged.", _REPROCESS),
    "gave_up": Advice("Processing failed by our fault; nothing was charged.", _REPROCESS),
}

RETRYABLE = (
    "gave_up", "internal_error", "inaccessible", "parser_crash", "time_limit", "memory_limit", "payer_gone", "pot_gone",
)  # fmt: skip
"""Failures that another night may mend, and that are never charged; the others are the document's own."""

_UNKNOWN = Advice("Processing failed.", "A code of another version of the pipeline: see its documentation.")


def advice(codes: Iterable[str]) -> Sequence[tuple[str, Advice]]:
    """Each code once, in alphabetical order, with what to do about it."""
    return [(code, ADVICE.get(code, _UNKNOWN)) for code in sorted(set(codes))]
