"""`fltr-pipeline reconcile`: one pass of every sweeper, the listing of all keys included.

Belongs here: what is printed. Does not: what is ended, and how (`pipeline.sweeper`).
"""

from dataclasses import asdict

from fltr_pipeline.cli.output import AsJson, counted, out, print_json, read_settings
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.services import open_services
from fltr_pipeline.pipeline.sweeper import Report, sweep_all

_FOUND = {
    "documents": "{} taken from dead workers",
    "published": "{} of these complete but for the last step, which was done",
    "charges": "{} ended whose document was gone or had moved on",
    "holds": "{} ended that no charge stood for",
    "credits_returned": "{} given back",
    "conflicts": "{} of the ledger changed by hand, which is left to people: see `fltr-pipeline credits audit`",
    "refused": "{} to end what a dead worker left, which a database refused: the log says which and why",
    "documents_deleted": "{} deleted: taken out of work and of the manifest",
    "datasets_deleted": "{} deleted",
    "documents_ownerless": "{} taken out of search: the dataset's owner is gone",
    "documents_restored": "{} queued again: the dataset has an owner again",
    "documents_moved": "{} queued in the dataset that it was moved to",
    "files_not_copied": "{} not copied to the dataset that the document was moved to: the log says which and why",
    "vectors_retired": "{} deleted from Milvus that nothing holds any more",
    "vectors_orphaned": "{} deleted from Milvus that the manifest does not know",
    "vectors_missing": "{} of searchable documents missing in Milvus",
    "documents_repaired": "{} queued to have lost vectors made anew, free of charge",
}
_NOUNS = {"published": "document", "conflicts": "row", "refused": "attempt"}


def reconcile(as_json: AsJson = False) -> None:
    """End what dead workers left and what is deleted; compare the manifest with Milvus, key by key, and repair it."""
    settings = read_settings()
    services = open_services(settings)
    billing = Billing(services.fltr, services.ledger, settings.prices, settings.charging)
    report = Report()
    try:
        for ended in sweep_all(services, billing, list_keys=True):
            report += ended
    except Exception:
        if not report.nothing:
            _tell(report, as_json=as_json)
        raise
    _tell(report, as_json=as_json)


def _tell(report: Report, *, as_json: bool) -> None:
    if as_json:
        receipts = [asdict(r) | {"verified_at": r.verified_at.isoformat()} for r in report.receipts]
        print_json({**report.figures, "receipts": receipts})
    elif report.nothing:
        out().print("nothing to do: no work, charge or hold is left over, and Milvus holds what the manifest says")
    else:
        _print(report)


def _print(report: Report) -> None:
    lines = [_FOUND[name].format(counted(n, _noun(name))) for name, n in report.figures.items() if n]
    for r in report.receipts:
        what = f"document {r.document_id}" if r.cause == "document" else f"{r.cause} of document {r.document_id}"
        seen = f"{r.verified_at:%Y-%m-%d %H:%M:%S %Z}"
        lines.append(
            f"{what} is gone: {counted(r.vectors, 'vector')} verified absent from dataset {r.dataset_id} at {seen}"
        )
    for line in lines:
        out().print(line, markup=False)


def _noun(name: str) -> str:
    return _NOUNS.get(name, name.partition("_")[0].removesuffix("s"))
