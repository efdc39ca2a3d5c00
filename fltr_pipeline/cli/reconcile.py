"""`fltr-pipeline reconcile`: one pass of what the job of that name does.

Belongs here: what is printed. Does not: what is ended, and how (`pipeline.expiry`).
"""

from dataclasses import asdict

from fltr_pipeline.cli.output import AsJson, counted, out, print_json, read_settings
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.services import open_services


def reconcile(as_json: AsJson = False) -> None:
    """End what dead workers left behind: leases, charges, holds. Settles what was delivered, releases the rest."""
    settings = read_settings()
    services = open_services(settings)
    billing = Billing(services.fltr, services.ledger, settings.prices, settings.charging)
    swept = expiry.sweep(services, billing, orphans=True)
    if as_json:
        print_json(asdict(swept))
    elif swept.nothing:
        out().print("nothing to do: no lease ran out, no charge and no hold is left open")
    else:
        _print(swept)


def _print(swept: expiry.Swept) -> None:
    lines = [
        f"{counted(swept.documents, 'document')} taken from dead workers, {swept.published:,} of them published",
        f"{counted(swept.charges, 'charge')} ended whose document was gone or had moved on",
        f"{counted(swept.holds, 'hold')} ended that no charge stood for",
        f"{counted(swept.credits_returned, 'credit')} given back",
    ]
    for line in lines:
        out().print(line, markup=False)
