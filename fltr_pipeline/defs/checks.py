"""The checks of both databases against their specification. Harmful drift blocks ingest."""

import dagster as dg

from fltr_pipeline.defs.datasets import datasets
from fltr_pipeline.defs.op import table, typed_failures
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.schema.verify import VerificationReport, verify_auth, verify_fltr


@dg.asset_check(asset=datasets, blocking=True, description="`fltr` has exactly the specified tables, columns and keys.")
def fltr_matches_specification() -> dg.AssetCheckResult:
    """Schema of `fltr`."""
    with typed_failures():
        return _result(verify_fltr(Settings().endpoints.database_url.get_secret_value()))


@dg.asset_check(asset=datasets, blocking=True, description="`fltr_auth` has the specified tables, columns and keys.")
def fltr_auth_matches_specification() -> dg.AssetCheckResult:
    """Schema of `fltr_auth`."""
    with typed_failures():
        return _result(verify_auth(Settings().endpoints.auth_database_url.get_secret_value()))


SCHEMA_CHECKS = [fltr_matches_specification, fltr_auth_matches_specification]


def _result(report: VerificationReport) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=report.conforms,
        severity=dg.AssetCheckSeverity.ERROR,
        description=None
        if report.conforms
        else f"{report.database} drifted: see the table, or `fltr-pipeline db verify`",
        metadata={
            "harmful": len(report.harmful),
            "harmless": len(report.harmless),
            "checked": len(report.findings),
            "differences": table(
                ("severity", "subject", "expected", "found", "mend"),
                [
                    (f.severity.value, f.subject, f.expected, f.found, f.mend)
                    for f in (*report.harmful, *report.harmless)
                ],
            ),
        },
    )
