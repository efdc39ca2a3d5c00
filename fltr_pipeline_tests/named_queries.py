"""The named queries on documents: how the pipeline calls each, and the indexes that it relies on.

Belongs here: the calls. Does not: what their plans must be like (integration/test_query_plans).
"""

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from fltr_pipeline.models import ReprocessMode, Stage
from fltr_pipeline.pipeline.deletion import PAGE
from fltr_pipeline.stores.fltr import (
    charges,
    claims,
    datasets,
    deleted,
    expired,
    generations,
    leases,
    locks,
    manifest,
    moved,
    plans,
    quarantine,
    requeue,
    texts,
)
from fltr_pipeline.stores.fltr.claims import Failure, Wait
from fltr_pipeline.stores.fltr.generations import FreshChunk
from fltr_pipeline.stores.fltr.moved import Move
from fltr_pipeline.stores.fltr.quarantine import Content
from fltr_pipeline_tests.large import Large
from fltr_pipeline_tests.queries import redoing, staged, words

Call = Callable[["Large", Connection], object]


def claiming(stage: Stage) -> Call:
    return lambda large, tx: claims.claim(
        tx, dataset_id=large.dataset.id, stage=stage, run_id="r", limit=100, lease_seconds=60
    )


def discarding(large: Large, tx: Connection) -> None:
    """With something to discard: else it looks no further than at the generations."""
    republished = "UPDATE pipeline.documents SET live_generation = 2, stage = NULL WHERE document_id = ANY(:ids)"
    tx.execute(text(republished), {"ids": list(large.ids)})
    generations.discard_others(tx, large.ids)


def withdrawing(large: Large, tx: Connection) -> int:
    withdrawn = deleted.withdraw(tx, large.ids, [large.dataset.user_id], "gone")
    assert withdrawn == len(large.ids)
    return withdrawn


def requeueing(mode: ReprocessMode, retryable: list[str] | None = None) -> Call:
    def call(large: Large, tx: Connection) -> None:
        redo = redoing(large.dataset.id, mode, fingerprint="new", retryable=retryable)
        requeue.requeue(tx, redo, requeue.choose(tx, redo))

    return call


CLAIMS: dict[str, tuple[set[str], Call]] = {
    "claim uploads": (
        {"documents_waiting_idx", "documents_by_stage", "deletions_pkey"}, claiming(Stage.EXTRACT)
    ),
    "claim parked": ({"documents_by_stage", "processing_jobs_pkey"}, claiming(Stage.PLAN)),
    "advance": ({"documents_pkey"}, lambda large, tx: claims.advance(tx, large.claims(2), Stage.EMBED)),
    "waiting_at": (set(), lambda large, tx: datasets.waiting_at(tx, large.dataset.id, Stage.PLAN)),
    "renew": ({"documents_pkey"}, lambda large, tx: claims.renew(tx, large.claims(2))),
    "refence": (set(), lambda large, tx: claims.refence(tx, large.claims(2))),
    "retry_later": (set(), lambda large, tx: claims.retry_later(tx, large.claims(2), "later")),
    "put_back": (
        set(),
        lambda large, tx: claims.put_back(tx, [Failure(c, "inaccessible", "later") for c in large.claims(2)]),
    ),
    "fail": (
        {"documents_pkey", "processing_jobs_pkey"},
        lambda large, tx: claims.fail(tx, [Failure(c, "corrupt", "bad") for c in large.claims(2)]),
    ),
    "wait_for_credits": (
        {"documents_pkey"},
        lambda large, tx: claims.wait_for_credits(tx, [Wait(c, 1, "user", "u") for c in large.claims(2)]),
    ),
    "claim suspects": (
        {"documents_suspect"},
        lambda large, tx: (leases.expire_runs(tx, ["run 0"]), claiming(Stage.EMBED)(large, tx)),
    ),
    "remember": (
        {"documents_pkey"},
        lambda large, tx: quarantine.remember(
            tx, large.claims(1)[0], Content("s", 1), tried_with="t", code="c", tries=1, allowed=1
        ),
    ),
    "inline_content": ({"documents_pkey"}, lambda large, tx: quarantine.inline_content(tx, large.ids[0])),
    "of_claims": (
        {"generations_pkey", "quarantine_pkey"},
        lambda large, tx: quarantine.of_claims(tx, large.claims(1), "t"),
    ),
    "of_sizes": ({"quarantine_by_size"}, lambda _, tx: quarantine.of_sizes(tx, [1, 2], "t")),
    "forgive": ({"quarantine_pkey"}, lambda _, tx: quarantine.forgive(tx, ["s", "t"], "t")),
    "mark": ({"documents_pkey"}, lambda large, tx: quarantine.mark(tx, large.claims(1)[0], "s")),
    "staged_content": (
        {"generations_pkey"}, lambda large, tx: quarantine.staged_content(tx, large.claims(1)[0])
    ),
    "readmit": ({"documents_pkey"}, lambda large, tx: quarantine.readmit(tx, large.ids)),
    "clock": (set(), lambda _, tx: leases.clock(tx)),
    "heartbeat": ({"documents_leased"}, lambda _, tx: leases.heartbeat(tx, run_id="run 0", lease_seconds=60)),
    "lock_unheld": ({"documents_pkey"}, lambda large, tx: locks.lock_unheld(tx, [*large.ids, str(uuid.uuid4())])),
    "expire_runs": ({"documents_leased"}, lambda _, tx: leases.expire_runs(tx, ["run 0", "run 7"])),
}  # fmt: skip

GENERATIONS: dict[str, tuple[set[str], Call]] = {
    "inline_texts": ({"documents_pkey"}, lambda large, tx: texts.inline_texts(tx, large.ids)),
    "former_texts": ({"generations_pkey"}, lambda large, tx: texts.former_texts(tx, large.ids, "g")),
    "live_sources": ({"generations_pkey"}, lambda large, tx: texts.live_sources(tx, large.ids)),
    "staged_sources": ({"generations_pkey"}, lambda large, tx: texts.staged_sources(tx, large.claims(1))),
    "reuse_texts": ({"generations_pkey"}, lambda large, tx: texts.reuse_texts(tx, large.claims(10), "e")),
    "unreadable": ({"documents_pkey"}, lambda large, tx: texts.unreadable(tx, large.claims(1), "e")),
    "stage_texts": ({"documents_pkey"}, lambda large, tx: texts.stage_texts(tx, [staged(large.claims(1)[0], "a")])),
    "staged_texts": ({"generations_pkey"}, lambda large, tx: texts.staged_texts(tx, large.claims(1))),
    "staged_sizes": ({"generations_pkey"}, lambda large, tx: texts.staged_sizes(tx, large.claims(1))),
    "fresh_tokens": ({"generations_pkey"}, lambda large, tx: generations.fresh_tokens(tx, large.claims(2))),
    "tokens_to_embed": ({"chunks_pkey"}, lambda large, tx: generations.tokens_to_embed(tx, large.claims(2))),
    "kept_keys": ({"chunks_pkey"}, lambda large, tx: generations.kept_keys(tx, large.claims(2))),
    "without_keys": ({"chunks_pkey"}, lambda large, tx: generations.without_keys(tx, large.claims(2))),
    "text_sizes": (
        {"documents_pkey", "generations_pkey"}, lambda large, tx: plans.text_sizes(tx, large.claims(10))
    ),
    "of_another": ({"generations_pkey"}, lambda large, tx: plans.of_another(tx, large.claims(2), "f")),
    "live_keys": ({"chunks_pkey"}, lambda large, tx: plans.live_keys(tx, large.ids, "f")),
    "copy_plans": (
        {"chunks_pkey", "generations_pkey"}, lambda large, tx: plans.copy_plans(tx, large.claims(10), "f")
    ),
    "store_plan": (
        {"chunks_pkey", "generations_pkey"},
        lambda large, tx: plans.store_plan(tx, [(c, words("alpha beta")) for c in large.claims(1)], "f"),
    ),
    "undelivered": ({"documents_pkey", "generations_pkey"}, lambda large, tx: generations.undelivered(tx, large.ids)),
    "assign_keys": ({"chunks_pkey"}, lambda large, tx: generations.assign_keys(tx, large.claims(2))),
    "held": ({"documents_pkey"}, lambda large, tx: generations.held(tx, large.claims(2))),
    "held_behind_inserts": (
        {"documents_pkey", "chunks_by_key", "deletions_pkey"},
        lambda large, tx: generations.held_behind_inserts(
            tx,
            [replace(c, fence=-1) for c in large.claims(2)],
            [FreshChunk(large.ids[0], f"k{n}", 0, 1, 1) for n in range(9)],
        ),
    ),
    "decided": ({"generations_pkey"}, lambda large, tx: generations.decided(tx, large.claims(2))),
    "decide and publish": (
        {"documents_pkey", "generations_pkey", "processing_jobs_pkey"},
        lambda large, tx: generations.publish(tx, [c for c in large.claims(2) if generations.decide(tx, [c])]),
    ),
    "confirm": (
        {"documents_pkey", "processing_jobs_pkey"}, lambda large, tx: generations.confirm(tx, large.claims(2))
    ),
    "discard_others": (
        {"chunks_pkey", "generations_pkey"}, discarding
    ),
    "retired_keys": (
        {"retired_keys_by_dataset"}, lambda large, tx: manifest.retired_keys(tx, large.dataset.id, "", 1000)
    ),
    "retired_keys of a large dataset": (
        {"retired_keys_by_dataset"}, lambda large, tx: manifest.retired_keys(tx, large.afternoon, "", 1000)
    ),
    "forget_retired": ({"retired_keys_pkey"}, lambda large, tx: manifest.forget_retired(
        tx, manifest.retired_keys(tx, large.dataset.id, "", 9)
    )),
    "datasets_to_sweep": ({"retired_keys_by_dataset"}, lambda _, tx: manifest.datasets_to_sweep(tx)),
    "live_page": (
        {"documents_live", "chunks_pkey"}, lambda large, tx: manifest.live_page(tx, large.dataset.id, "", 100)
    ),
    "live_page of a large dataset": (
        {"documents_live", "chunks_pkey"}, lambda large, tx: manifest.live_page(tx, large.afternoon, "5", 100)
    ),
    "still_live": ({"chunks_by_key"}, lambda large, tx: manifest.still_live(tx, large.keys)),
    "named": ({"chunks_by_key", "retired_keys_pkey"}, lambda large, tx: manifest.named(tx, large.keys)),
    "lose": ({"chunks_by_key"}, lambda large, tx: manifest.lose(tx, large.keys, "f")),
    "keys_of": ({"chunks_pkey"}, lambda large, tx: manifest.keys_of(tx, large.dataset.id, large.ids)),
    "live_generations": (
        {"documents_pkey"}, lambda large, tx: manifest.live_generations(tx, large.dataset.id, large.ids)
    ),
    "embedding": ({"documents_leased"}, lambda _, tx: manifest.embedding(tx)),
    "places": (
        {"chunks_by_key"}, lambda large, tx: manifest.places(tx, large.dataset.id, [("key", i) for i in large.ids])
    ),
}  # fmt: skip

DATASETS: dict[str, tuple[set[str], Call]] = {
    "backlog": ({"documents_waiting_idx", "documents_by_stage"}, lambda _, tx: datasets.backlog(tx)),
    "awaiting": ({"documents_awaiting"}, lambda _, tx: datasets.awaiting(tx)),
    "in_flight": ({"documents_by_stage"}, lambda large, tx: datasets.in_flight(tx, large.dataset.id)),
    "pace": (
        {"documents_dataset_id_idx", "processing_jobs_document_id_idx"},
        lambda large, tx: datasets.pace(tx, large.dataset.id, window=60),
    ),
    "status": ({"documents_dataset_id_idx"}, lambda large, tx: datasets.status(tx, large.dataset)),
    "is_searchable": ({"documents_live"}, lambda large, tx: datasets.is_searchable(tx, large.dataset.id)),
    "is_searchable of a large dataset": (
        {"documents_live"}, lambda large, tx: datasets.is_searchable(tx, large.afternoon)
    ),
    "names_of": (
        {"documents_pkey"},
        lambda large, tx: datasets.names_of(tx, dataset_ids=[large.dataset.id], document_ids=large.ids),
    ),
    "find_documents": (
        {"documents_dataset_id_idx"}, lambda large, tx: datasets.find_documents(tx, large.dataset.id, ["5000.txt"])
    ),
    "upload": (
        {"upload_keys_pkey"},
        lambda large, tx: datasets.upload(tx, large.dataset.id, [(i, "x") for i in large.ids]),
    ),
    "upload with a key": (
        set(), lambda large, tx: datasets.upload(tx, large.dataset.id, [(i, "x") for i in large.ids], "1" * 64)
    ),
    "content": ({"documents_pkey"}, lambda large, tx: datasets.content(tx, large.ids[0])),
    "choose and requeue failed": ({"documents_dataset_id_idx"}, requeueing(ReprocessMode.failed)),
    "choose and requeue retryable": ({"documents_dataset_id_idx"}, requeueing(ReprocessMode.failed, ["gave_up"])),
    "choose and requeue stale": ({"documents_dataset_id_idx"}, requeueing(ReprocessMode.stale)),
    "choose and requeue all": ({"documents_dataset_id_idx"}, requeueing(ReprocessMode.all)),
}  # fmt: skip

CHARGES: dict[str, tuple[set[str], Call]] = {
    "open_charges": ({"charges_open"}, lambda _, tx: charges.open_charges(tx)),
    "write_charges": (
        {"charges_pkey", "documents_pkey"},
        lambda large, tx: charges.write_charges(tx, large.charges(), dict.fromkeys(large.ids, 1)),
    ),
    "next_sequence": (
        {"charges_pkey", "documents_pkey"},
        lambda large, tx: charges.next_sequence(tx, large.charges(), dict.fromkeys(large.ids, 1)),
    ),
    "close_charges": (
        {"charges_pkey"}, lambda large, tx: charges.close_charges(tx, [(c, "settled", 1) for c in large.charges()])
    ),
    "charges_of": ({"charges_pkey"}, lambda large, tx: charges.charges_of(tx, [(i, 1) for i in large.ids])),
    "mark_refunding": (set(), lambda large, tx: charges.mark_refunding(tx, [(large.ids[0], 1)])),
    "in_hand": ({"charges_pkey", "documents_pkey"}, lambda large, tx: charges.in_hand(tx, [(i, 1) for i in large.ids])),
    "refunding_charges": ({"charges_refunding"}, lambda _, tx: charges.refunding_charges(tx, 100)),
    "abandoned_charges": ({"charges_open"}, lambda _, tx: charges.abandoned_charges(tx, age=60, limit=100)),
}  # fmt: skip

EXPIRED: dict[str, tuple[set[str], Call]] = {
    "take": (
        {"documents_leased", "charges_open", "documents_pkey", "processing_jobs_pkey"},
        lambda _, tx: (leases.expire_runs(tx, ["run 0"]), expired.take(tx, lease_seconds=60, age=-60, limit=2000)),
    ),
    "overdue": ({"documents_leased", "charges_open"}, lambda _, tx: expired.overdue(tx, age=60, limit=100)),
    "awaiting_credits": ({"documents_pkey"}, lambda large, tx: expired.awaiting_credits(tx, large.ids)),
    "deliverable": ({"documents_pkey"}, lambda large, tx: expired.deliverable(tx, large.claims(2))),
    "delivered": (
        {"generations_pkey", "documents_pkey"},
        lambda large, tx: expired.delivered(tx, [(i, 1) for i in large.ids]),
    ),
    "park": ({"documents_pkey"}, lambda large, tx: expired.park(tx, large.claims(2))),
}  # fmt: skip

DELETED: dict[str, tuple[set[str], Call]] = {
    "page": ({"documents_pkey", "upload_keys_pkey"}, lambda large, tx: deleted.page(tx, large.ids[0], PAGE)),
    "page_of": (
        {"documents_live", "documents_by_stage"},
        lambda large, tx: deleted.page_of(tx, large.dataset.id, large.ids[0], PAGE),
    ),
    "datasets_of": ({"documents_pkey"}, lambda large, tx: deleted.datasets_of(tx, large.ids)),
    "not_empty": (
        {"documents_live", "documents_by_stage"}, lambda large, tx: deleted.not_empty(tx, [large.dataset.id])
    ),
    "not_empty of a large dataset": (
        {"documents_live", "documents_by_stage"}, lambda large, tx: deleted.not_empty(tx, [large.afternoon])
    ),
    "withdrawable": (
        {"documents_pkey"}, lambda large, tx: deleted.withdrawable(tx, large.ids, [large.dataset.user_id])
    ),
    "in_hand": ({"documents_by_stage"}, lambda large, tx: deleted.in_hand(tx, [large.dataset.id])),
    "forget": (
        {"documents_pkey", "chunks_pkey", "generations_pkey", "retired_keys_by_document"},
        lambda large, tx: [large.delete(tx), deleted.forget(tx, large.ids)],
    ),
    "withdraw": ({"documents_pkey", "chunks_pkey"}, withdrawing),
    "verify": ({"retired_keys_by_document"}, lambda large, tx: (withdrawing(large, tx), deleted.verify(tx))),
    "deleted.overdue": ({"retired_keys_by_age"}, lambda _, tx: deleted.overdue(tx, age=60)),
    "among": ({"documents_pkey"}, lambda large, tx: moved.among(tx, large.ids)),
    "waiting": ({"documents_by_stage"}, lambda large, tx: moved.waiting(tx, large.dataset.id)),
    "arrived": (
        {"documents_waiting_idx", "documents_pkey"}, lambda large, tx: moved.arrived(tx, large.afternoon)
    ),
    "dataset_now": ({"documents_pkey"}, lambda large, tx: moved.dataset_now(tx, large.ids[0])),
    "upload_keys": (
        {"documents_pkey", "upload_keys_pkey"},
        lambda large, tx: moved.upload_keys(tx, [Move(i, large.dataset.id, "to", "1", True) for i in large.ids]),
    ),
    "put_off": (
        {"documents_pkey"},
        lambda large, tx: moved.put_off(
            tx, dict.fromkeys(Move(i, large.dataset.id, "to", "1", True) for i in large.ids), seconds=300
        ),
    ),
    "follow": (
        {"documents_pkey", "generations_pkey", "processing_jobs_pkey"},
        lambda large, tx: [
            large.move(tx),
            moved.follow(
                tx, (them := moved.among(tx, large.ids)), without_file=dict.fromkeys(them, "403"),
                without_key=dict.fromkeys(large.ids, "1" * 64),
            ),
        ],
    ),
    "sources": ({"generations_pkey", "chunks_pkey"}, lambda large, tx: moved.sources(tx, large.free_claims())),
    "lost": ({"chunks_lost"}, lambda _, tx: requeue.lost(tx, "", 100, tried_with="t")),
    "repair": ({"documents_pkey", "generations_pkey"}, lambda large, tx: requeue.repair(tx, large.ids)),
    "begun_since": (
        {"documents_pkey", "processing_jobs_pkey"},
        lambda large, tx: requeue.begun_since(tx, large.ids, datetime.now(UTC)),
    ),
    "make_free": ({"documents_pkey"}, lambda large, tx: requeue.make_free(tx, large.claims(2))),
    "restore": (
        {"documents_pkey"},
        lambda large, tx: (withdrawing(large, tx), requeue.restore(tx, large.ids, but_of=[])),
    ),
}  # fmt: skip

CALLS = CLAIMS | GENERATIONS | DATASETS | CHARGES | EXPIRED | DELETED
"""What is called, and the indexes that its comments name."""
