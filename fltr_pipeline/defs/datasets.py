"""Asset `datasets`: the owner exists, the collection stands, the set-up is charged. And what it stands on."""

import dagster as dg

from fltr_pipeline.defs.op import ingesting, services_of, worker_of
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.pipeline.setup import ground, set_up
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource

OWNERS_TABLES = [
    dg.AssetSpec(["fltr_auth", name], description=description, group_name="fltr_auth", kinds={"postgres"})
    for name, description in {
        "users": "Who owns datasets. The web application's table; the pipeline reads id and e-mail.",
        "user_credits": "Balances of users. The web application's table; the pipeline moves `credits`.",
        "teams": "Balances of teams. The web application's table; the pipeline moves `credits`.",
    }.items()
]
"""What the pipeline reads before it works; the ledger, to which it writes, is `jobs.LEDGER`."""

SCHEMAS = [
    dg.AssetSpec(
        [name, "schema"], description=f"The tables, columns and keys of `{name}`.", group_name=name, kinds={"postgres"}
    )
    for name in ("fltr", "fltr_auth")
]
"""What the blocking checks stand on: before `datasets`, so that nothing is charged on a schema with harmful drift."""


@dg.asset(
    partitions_def=DATASET_PARTITIONS,
    deps=[*OWNERS_TABLES, *SCHEMAS],
    group_name="fltr",
    kinds={"postgres", "milvus"},
)
def datasets(
    context: dg.AssetExecutionContext,
    fltr: FltrResource,
    credits: CreditsResource,
    milvus: MilvusResource,
    embedder: EmbedderResource,
    blobs: BlobsResource,
) -> dg.MaterializeResult[None]:
    """A customer's dataset, ready to take documents: its owner can be charged and its collection is there."""
    with ingesting(context):
        services = services_of(fltr, credits, milvus, embedder, blobs)
        billing = credits.billing(services.fltr)
        base = ground(services, context.partition_key)
        if base.payer is None:
            context.log.warning(
                "the owner %s of dataset %r has no account in fltr_auth", base.dataset.user_id, base.dataset.name
            )
        report = set_up(services, billing, worker_of(context, services), base)
    return dg.MaterializeResult(
        metadata={
            "dataset": base.dataset.name,
            "owner_exists": base.payer is not None,
            "credits_reserved": report.credits_reserved,
            "credits_charged": report.credits_charged,
            "credits_returned": report.credits_returned,
            "documents_awaiting_credits": report.awaiting_credits,
        }
    )
