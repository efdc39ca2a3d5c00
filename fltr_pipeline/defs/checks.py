"""The checks that look at everything: both databases against their specification, the manifest against Milvus, and
the ledger against its balances.

Harmful drift of a schema blocks ingest: these two checks run before its first op. The comparison with Milvus lists
every key and the audit reads every row of the ledger, so they run by schedule, on assets of their own, and not with
each run.
"""

from collections.abc import Collection
from dataclasses import asdict

import dagster as dg

from fltr_pipeline.credits.audit import Audit
from fltr_pipeline.defs.datasets import SCHEMAS
from fltr_pipeline.defs.document_embeddings import document_embeddings
from fltr_pipeline.defs.op import blocked, services_of, table, typed_failures
from fltr_pipeline.pipeline.audit import audit_ledger
from fltr_pipeline.pipeline.reconcile import Drift, compare_all
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.schema.verify import VerificationReport, verify_auth, verify_fltr

_FLTR, _FLTR_AUTH = SCHEMAS


@dg.asset_check(
    asset=_FLTR.key, blocking=True, description="`fltr` has exactly the specified tables, columns and keys."
)
def fltr_matches_specification() -> dg.AssetCheckResult:
    """Schema of `fltr`."""
    with typed_failures():
        return _result(verify_fltr(Settings().endpoints.database_url.get_secret_value()))


@dg.asset_check(
    asset=_FLTR_AUTH.key, blocking=True, description="`fltr_auth` has the specified tables, columns and keys."
)
def fltr_auth_matches_specification() -> dg.AssetCheckResult:
    """Schema of `fltr_auth`."""
    with typed_failures():
        return _result(verify_auth(Settings().endpoints.auth_database_url.get_secret_value()))


COLLECTION = dg.AssetSpec(
    ["milvus", "fltr_chunks"],
    description="The collection that all datasets share, partitioned by dataset.",
    group_name="milvus",
    kinds={"milvus"},
    deps=[document_embeddings],
)


@dg.asset_check(asset=COLLECTION.key, description="The manifest in Postgres and Milvus hold the same keys.")
def manifest_matches_milvus(
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> dg.AssetCheckResult:
    """Every dataset, key by key."""
    with typed_failures():
        drifts = compare_all(services_of(fltr, credits, milvus, embedder, blobs))
    return dg.AssetCheckResult(
        passed=not drifts,
        severity=dg.AssetCheckSeverity.ERROR,
        description="`fltr-pipeline reconcile`, or the job, repairs it" if drifts else None,
        metadata={
            "missing": sum(len(d.missing) for d in drifts.values()),
            "orphans": sum(len(d.orphans) for d in drifts.values()),
            "lost": sum(d.lost for d in drifts.values()),
            "deleted_documents": sum(d.deleted for d in drifts.values()),
            "moved_documents": sum(d.moved for d in drifts.values()),
            "datasets": table(
                ("dataset", *_FIGURES, "missing keys", "orphan keys"),
                [(i, *_figures(d), _some(d.missing), _some(d.orphans)) for i, d in drifts.items()],
            ),
        },
    )


_FIGURES = ("live", "missing", "orphans", "lost", "deleted documents", "moved documents")
_KEYS_SHOWN = 20


def _figures(drift: Drift) -> tuple[str, ...]:
    missing, orphans = len(drift.missing), len(drift.orphans)
    return tuple(str(n) for n in (drift.live, missing, orphans, drift.lost, drift.deleted, drift.moved))


def _some(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys)[:_KEYS_SHOWN])


LEDGER_KEY = dg.AssetKey(["fltr_auth", "credit_transactions"])

_FINDINGS_SHOWN = 200


@dg.asset_check(
    asset=LEDGER_KEY,
    description="Each balance equals its opening and its rows, each hold has one close at most, none is open too long.",
)
def ledger_balanced(fltr: FltrResource, credits: CreditsResource) -> dg.AssetCheckResult:
    """The audit of `fltr-pipeline credits audit`, in one snapshot."""
    with typed_failures():
        return _audited(audit_ledger(fltr.engine(), credits.ledger()))


SCHEMA_CHECKS = [fltr_matches_specification, fltr_auth_matches_specification]


def _result(report: VerificationReport) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=report.conforms,
        severity=dg.AssetCheckSeverity.ERROR,
        description=blocked(report),
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


def _audited(audit: Audit) -> dg.AssetCheckResult:
    figures = {name: n for name, n in asdict(audit).items() if isinstance(n, int)} | asdict(audit.totals)
    findings = [
        (f.severity.value, f.pot, f.subject, f.row_id, f.problem, f.remedy) for f in audit.findings[:_FINDINGS_SHOWN]
    ]
    return dg.AssetCheckResult(
        passed=not audit.findings,
        severity=dg.AssetCheckSeverity.WARN if audit.balanced else dg.AssetCheckSeverity.ERROR,
        description=f"{audit.errors} errors, {audit.warnings} warnings: see the table, or `fltr-pipeline credits audit`"
        if audit.findings
        else None,
        metadata=figures
        | {"findings": table(("severity", "pot", "subject", "row", "what is wrong", "what to do"), findings)},
    )
