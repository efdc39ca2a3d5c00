"""On 100,000 documents, no named query reads a whole table that grows with the documents.

Each public function is called as the pipeline calls it. Before PostgreSQL runs one of its statements, it is asked for
its plan, with the very parameters and, since the driver prepares what runs often, without them.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from fltr_pipeline.models import Op, ReprocessMode, Stage
from fltr_pipeline.stores.database import id_array
from fltr_pipeline.stores.fltr import (
    charges,
    claims,
    datasets,
    deleted,
    expired,
    generations,
    jobs,
    manifest,
    moved,
    quarantine,
    requeue,
    texts,
)
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim, Failure, Wait
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.fltr.generations import FreshChunk
from fltr_pipeline.stores.fltr.quarantine import Content
from fltr_pipeline_tests.queries import Copy, Fltr, staged, words

Call = Callable[["Large", Connection], object]

LOAD = """
SET LOCAL session_replication_role = replica;  -- the foreign keys need no proof here

INSERT INTO datasets (id, user_id, name, created_at, updated_at)
SELECT md5('s' || n)::uuid, md5('u' || n)::uuid, 'dataset ' || n, now(), now() FROM generate_series(0, 5000) n;

-- 5,000 datasets of 20 documents: of each hundred one is uploaded, one parked, one leased, one failed, and one awaits
-- credits (of the first dataset, one each); the rest is ready. Then a dataset of 10,000, all of them published once and
-- uploaded anew this afternoon.
CREATE TEMP TABLE made ON COMMIT DROP AS
SELECT n, md5('d' || n)::uuid::text AS id, md5('s' || s)::uuid::text AS dataset_id,
       CASE s WHEN 5000 THEN -1 WHEN 0 THEN n / 5000 ELSE n % 100 END AS kind
FROM generate_series(0, 109999) n, LATERAL (SELECT CASE WHEN n < 100000 THEN n % 5000 ELSE 5000 END AS s) t;

INSERT INTO documents (id, dataset_id, filename, content, status, created_at, updated_at)
SELECT id::uuid, dataset_id::uuid, n || '.txt', CASE WHEN kind NOT BETWEEN 0 AND 4 THEN repeat('alpha beta ', 20) END,
       CASE WHEN kind < 1 THEN 'uploaded' WHEN kind < 3 THEN 'processing' WHEN kind = 3 THEN 'failed'
            WHEN kind = 4 THEN 'awaiting_credits' ELSE 'ready' END,
       now() - n * interval '1 s', now()
FROM made;

INSERT INTO processing_jobs (id, document_id, status, created_at, updated_at)
SELECT md5('j' || n)::uuid, id::uuid, CASE WHEN kind IN (1, 2, 4) THEN 'running' ELSE 'completed' END, now(), now()
FROM made WHERE kind <> 0;

INSERT INTO pipeline.documents (document_id, dataset_id, input_version, live_generation, stage, run_id, lease_until,
                                job_id, credits_needed, pot_kind, pot_id)
SELECT m.id, m.dataset_id, d.updated_at, CASE WHEN kind NOT BETWEEN 0 AND 4 THEN 1 END,
       CASE kind WHEN 1 THEN 'plan' WHEN 2 THEN 'embed' WHEN 4 THEN 'extract' END,
       CASE kind WHEN 2 THEN 'run ' || n / 5000 ELSE 'old run' END, CASE kind WHEN 2 THEN now() + interval '1 h' END,
       md5('j' || n)::uuid, CASE kind WHEN 4 THEN 3 END, CASE kind WHEN 4 THEN 'user' END,
       CASE kind WHEN 4 THEN 'u' || n % 5000 END
FROM made m JOIN documents d ON d.id::text = m.id WHERE kind <> 0;

INSERT INTO pipeline.generations (document_id, generation, state, extractor, fingerprint, source_sha256, source_bytes,
                                  kind, engine, text, text_sha256, pages, chunks, tokens, fresh_tokens)
SELECT id, 1, CASE WHEN kind IN (1, 2) THEN 'planned' ELSE 'live' END, 'e', 'f', 's', 10, 'text', 'utf-8',
       CASE WHEN kind IN (1, 2) THEN 'alpha beta' END, 't', 1, 10, 4, 4
FROM made WHERE kind <> 0;

INSERT INTO pipeline.chunks (document_id, generation, ordinal, key, fresh, digest, page, start_offset, end_offset,
                             tokens)
SELECT id, 1, o, md5(n || ':' || o), true, md5(o::text), 1, o, o + 4, 2
FROM made, generate_series(0, 14) o WHERE n % 10 = 0;

INSERT INTO pipeline.retired_keys (key, dataset_id, document_id) SELECT md5('r' || n), dataset_id, id FROM made;

INSERT INTO pipeline.charges (subject_id, op, generation, dataset_id, amount, user_id, pot_kind, pot_id, price_version,
                              unit_price, state)
SELECT id, 'document_plan', 1, dataset_id, 1, 'u', 'user', 'u', 'v', 1, CASE kind WHEN 1 THEN 'open' ELSE 'settled' END
FROM made WHERE kind > 0;

INSERT INTO pipeline.quarantine (source_sha256, tried_with, source_bytes, code, tries, in_force)
SELECT md5('q' || n), 't', n, 'gave_up', 5, n % 2 = 0 FROM made;

INSERT INTO pipeline.upload_keys SELECT id, repeat('1', 64) FROM made WHERE kind < 1;
"""

LARGE = {"documents", "processing_jobs", "generations", "chunks", "retired_keys", "charges", "quarantine"}
"""Tables that grow with the documents, in either schema."""


@dataclass(frozen=True)
class Large:
    """The loaded database, and what its documents look like to a worker."""

    fltr: Fltr
    dataset: Dataset
    afternoon: str
    """The dataset of 10,000 uploads."""
    ids: tuple[str, ...]
    """Fifteen ready documents."""
    keys: tuple[str, ...]
    """Of a hundred live chunks."""

    def delete(self, tx: Connection) -> int:
        """What the application does to the fifteen."""
        return tx.execute(
            text("DELETE FROM public.documents WHERE id = ANY(:ids)"), {"ids": id_array(self.ids)}
        ).rowcount

    def move(self, tx: Connection) -> int:
        """What the application does to the fifteen, too."""
        values = "dataset_id = (SELECT dataset_id FROM public.documents ORDER BY id DESC LIMIT 1)"
        statement = text(f"UPDATE public.documents SET {values} WHERE id = ANY(:ids)")
        return tx.execute(statement, {"ids": id_array(self.ids)}).rowcount

    def free_claims(self) -> list[Claim]:
        return [replace(c, billable=False) for c in self.claims(2)]

    def claims(self, kind: int) -> list[Claim]:
        query = "SELECT document_id, fence, job_id FROM pipeline.documents WHERE document_id = md5(:n)::uuid::text"
        rows = self.fltr.rows(query, n=f"d{kind * 5000}")
        return [Claim(i, self.dataset.id, "x", 1, None, fence, job, True, 0) for i, fence, job in rows]

    def charges(self) -> list[Charge]:
        values = {"dataset_id": self.dataset.id, "amount": 1, "user_id": "u", "pot_kind": "user", "pot_id": "u"}
        return [
            Charge(i, Op.DOCUMENT_PLAN, 1, price_version="v", unit_price=1, job_id=None, **values)  # type: ignore[arg-type]
            for i in self.ids
        ]


@pytest.fixture(scope="module", params=["text", "uuid"])
def large(request: pytest.FixtureRequest, copy_of_fltr: Callable[[str], Copy]) -> Iterator[Large]:
    with copy_of_fltr(request.param) as fltr:
        fltr.change(LOAD)
        with fltr.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        small, afternoon, ids = fltr.one(
            "SELECT md5('s0')::uuid::text, md5('s5000')::uuid::text, array_agg(md5('d' || n)::uuid::text)"
            " FROM generate_series(25000, 99999, 5000) n"
        )
        keys = [key for (key,) in fltr.rows("SELECT key FROM pipeline.chunks ORDER BY key LIMIT 100")]
        yield Large(fltr, Dataset(small, "u", "dataset 0"), afternoon, tuple(ids), tuple(keys))


@dataclass(frozen=True)
class Plans:
    """What PostgreSQL would do for the statements of one call."""

    indexes: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    scans: set[str] = field(default_factory=set)
    """Large tables that are read as a whole."""


def plans(large: Large, call: Callable[[Connection], object], about: str = "") -> Plans:
    """The plans of the call's statements that contain `about`; what the call does is rolled back."""
    found = Plans()

    def explain(connection: Connection, _: object, statement: str, parameters: Any, *__: object) -> None:
        if about not in statement:
            return
        with closing(connection.connection.cursor()) as cursor:
            found_plans = [
                cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters).fetchall(),
                cursor.execute(f"EXPLAIN (FORMAT JSON, GENERIC_PLAN) {numbered(statement)}").fetchall(),
            ]
        for ((explained,),) in found_plans:
            for node in nodes(explained[0]["Plan"]):
                found.nodes.add(node["Node Type"])
                found.indexes.update({node["Index Name"]} if "Index Name" in node else ())
                if node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE:
                    found.scans.add(node["Relation Name"])

    with large.fltr.engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", explain)
        call(connection)
        connection.rollback()
    return found


def numbered(statement: str) -> str:
    """With `$1` for the driver's `%(name)s`: the same number for the same name."""
    names: dict[str, int] = {}
    return re.sub(r"%\((\w+)\)s", lambda found: f"${names.setdefault(found[1], len(names) + 1)}", statement).replace(
        "%%", "%"
    )


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def claiming(stage: Stage) -> Call:
    return lambda large, tx: claims.claim(
        tx, dataset_id=large.dataset.id, stage=stage, run_id="r", limit=100, lease_seconds=60
    )


def discarding(large: Large, tx: Connection) -> None:
    """With something to discard: else it looks no further than at the generations."""
    republished = "UPDATE pipeline.documents SET live_generation = 2, stage = NULL WHERE document_id = ANY(:ids)"
    tx.execute(text(republished), {"ids": list(large.ids)})
    generations.discard_others(tx, large.ids)


def requeueing(mode: ReprocessMode, retryable: list[str] | None = None) -> Call:
    return lambda large, tx: requeue.requeue(
        tx,
        large.dataset.id,
        mode,
        fingerprint="new",
        extractor="extractor-1",
        tried_with="t",
        billable=False,
        retryable=retryable,
    )


CLAIMS: dict[str, tuple[set[str], Call]] = {
    "claim uploads": ({"documents_waiting_idx", "documents_by_stage"}, claiming(Stage.EXTRACT)),
    "claim parked": ({"documents_by_stage", "processing_jobs_pkey"}, claiming(Stage.PLAN)),
    "advance": ({"documents_pkey"}, lambda large, tx: claims.advance(tx, large.claims(2), Stage.EMBED)),
    "waiting_at": (set(), lambda large, tx: datasets.waiting_at(tx, large.dataset.id, Stage.PLAN)),
    "renew": ({"documents_pkey"}, lambda large, tx: claims.renew(tx, large.claims(2))),
    "refence": (set(), lambda large, tx: claims.refence(tx, large.claims(2))),
    "retry_later": (set(), lambda large, tx: claims.retry_later(tx, large.claims(2), "later")),
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
        lambda large, tx: (claims.expire_runs(tx, ["run 0"]), claiming(Stage.EMBED)(large, tx)),
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
    "mark": ({"documents_pkey"}, lambda large, tx: quarantine.mark(tx, large.claims(1)[0], "s")),
    "staged_content": (
        {"generations_pkey"}, lambda large, tx: quarantine.staged_content(tx, large.claims(1)[0])
    ),
    "readmit": ({"documents_pkey"}, lambda large, tx: quarantine.readmit(tx, large.ids)),
    "heartbeat": ({"documents_leased"}, lambda _, tx: claims.heartbeat(tx, run_id="run 0", lease_seconds=60)),
    "expire_runs": ({"documents_leased"}, lambda _, tx: claims.expire_runs(tx, ["run 0", "run 7"])),
}  # fmt: skip

GENERATIONS: dict[str, tuple[set[str], Call]] = {
    "live_sources": ({"generations_pkey"}, lambda large, tx: texts.live_sources(tx, large.ids)),
    "staged_sources": ({"generations_pkey"}, lambda large, tx: texts.staged_sources(tx, large.claims(1))),
    "reuse_texts": ({"generations_pkey"}, lambda large, tx: texts.reuse_texts(tx, large.claims(10))),
    "unreadable": ({"documents_pkey"}, lambda large, tx: texts.unreadable(tx, large.claims(1), "e")),
    "stage_texts": ({"documents_pkey"}, lambda large, tx: texts.stage_texts(tx, [staged(large.claims(1)[0], "a")])),
    "staged_texts": ({"generations_pkey"}, lambda large, tx: texts.staged_texts(tx, large.claims(1))),
    "staged_sizes": ({"generations_pkey"}, lambda large, tx: texts.staged_sizes(tx, large.claims(1))),
    "fresh_tokens": ({"generations_pkey"}, lambda large, tx: generations.fresh_tokens(tx, large.claims(2))),
    "live_keys": ({"chunks_pkey"}, lambda large, tx: generations.live_keys(tx, large.ids, "f")),
    "copy_plans": (
        {"chunks_pkey", "generations_pkey"}, lambda large, tx: generations.copy_plans(tx, large.claims(10), "f")
    ),
    "store_plan": (
        {"chunks_pkey", "generations_pkey"},
        lambda large, tx: generations.store_plan(tx, [(c, words("alpha beta")) for c in large.claims(1)], "f"),
    ),
    "assign_keys": ({"chunks_pkey"}, lambda large, tx: generations.assign_keys(tx, large.claims(2))),
    "held": ({"documents_pkey"}, lambda large, tx: generations.held(tx, large.claims(2))),
    "retire_inert": (
        {"chunks_by_key"},
        lambda large, tx: generations.retire_inert(
            tx, large.dataset.id, [FreshChunk(large.ids[0], f"k{n}", 0, 1, 1) for n in range(9)]
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
    "retired_keys": ({"retired_keys_by_dataset"}, lambda large, tx: manifest.retired_keys(tx, large.dataset.id, 1000)),
    "retired_keys of a large dataset": (
        {"retired_keys_by_dataset"}, lambda large, tx: manifest.retired_keys(tx, large.afternoon, 1000)
    ),
    "forget_retired": ({"retired_keys_pkey"}, lambda large, tx: manifest.forget_retired(tx, large.ids)),
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
    "keys_of": ({"documents_pkey", "chunks_pkey"}, lambda large, tx: manifest.keys_of(tx, large.ids)),
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
    "content_sizes": ({"documents_pkey"}, lambda large, tx: datasets.content_sizes(tx, large.ids)),
    "requeue failed": ({"documents_dataset_id_idx"}, requeueing(ReprocessMode.failed)),
    "requeue retryable": ({"documents_dataset_id_idx"}, requeueing(ReprocessMode.failed, ["gave_up"])),
    "requeue stale": ({"documents_dataset_id_idx"}, requeueing(ReprocessMode.stale)),
    "requeue all": ({"documents_dataset_id_idx"}, requeueing(ReprocessMode.all)),
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
    "refunding_charges": ({"charges_refunding"}, lambda _, tx: charges.refunding_charges(tx, 100)),
    "abandoned_charges": ({"charges_open"}, lambda _, tx: charges.abandoned_charges(tx, age=60, limit=100)),
}  # fmt: skip

EXPIRED: dict[str, tuple[set[str], Call]] = {
    "take": (
        {"documents_leased", "charges_open", "documents_pkey", "processing_jobs_pkey"},
        lambda _, tx: (claims.expire_runs(tx, ["run 0"]), expired.take(tx, lease_seconds=60, age=-60, limit=2000)),
    ),
    "overdue": ({"documents_leased", "charges_open"}, lambda _, tx: expired.overdue(tx, age=60)),
    "deliverable": (set(), lambda large, tx: expired.deliverable(tx, large.ids)),
    "delivered": (
        {"generations_pkey", "documents_pkey"},
        lambda large, tx: expired.delivered(tx, [(i, 1) for i in large.ids]),
    ),
    "park": ({"documents_pkey"}, lambda large, tx: expired.park(tx, large.claims(2))),
}  # fmt: skip

DELETED: dict[str, tuple[set[str], Call]] = {
    "page": ({"documents_pkey", "upload_keys_pkey"}, lambda large, tx: deleted.page(tx, large.ids[0], 10_000)),
    "datasets_of": ({"documents_pkey"}, lambda large, tx: deleted.datasets_of(tx, large.ids)),
    "withdrawable": (
        {"documents_live", "documents_by_stage"}, lambda large, tx: deleted.withdrawable(tx, [large.dataset.id], 100)
    ),
    "forget": (
        {"documents_pkey", "chunks_pkey", "generations_pkey", "retired_keys_by_document"},
        lambda large, tx: [large.delete(tx), deleted.forget(tx, large.ids)],
    ),
    "withdraw": ({"documents_pkey", "chunks_pkey"}, lambda large, tx: deleted.withdraw(tx, large.ids, "gone")),
    "verify": (
        {"retired_keys_by_document"}, lambda large, tx: (deleted.withdraw(tx, large.ids, "gone"), deleted.verify(tx))
    ),
    "deleted.overdue": ({"retired_keys_by_age"}, lambda _, tx: deleted.overdue(tx, age=60)),
    "among": ({"documents_pkey"}, lambda large, tx: moved.among(tx, large.ids)),
    "follow": (
        {"documents_pkey", "generations_pkey", "processing_jobs_pkey"},
        lambda large, tx: [large.move(tx), moved.follow(tx, moved.among(tx, large.ids))],
    ),
    "sources": ({"generations_pkey", "chunks_pkey"}, lambda large, tx: moved.sources(tx, large.free_claims())),
    "lost": ({"chunks_by_key"}, lambda _, tx: requeue.lost(tx, "", 100, tried_with="t")),
    "repair": ({"documents_pkey", "generations_pkey"}, lambda large, tx: requeue.repair(tx, large.ids)),
    "make_free": ({"documents_pkey"}, lambda large, tx: requeue.make_free(tx, large.claims(2))),
    "restore": (
        {"documents_pkey"},
        lambda large, tx: (deleted.withdraw(tx, large.ids, "gone"), requeue.restore(tx, large.ids, but_of=[])),
    ),
}  # fmt: skip

CALLS = CLAIMS | GENERATIONS | DATASETS | CHARGES | EXPIRED | DELETED
"""What is called, and the indexes that its comments name."""


@pytest.mark.parametrize("name", CALLS)
def test_the_named_indexes_are_used_and_no_large_table_is_scanned(large: Large, name: str) -> None:
    indexes, call = CALLS[name]
    found = plans(large, lambda tx: call(large, tx))
    assert indexes <= found.indexes
    assert found.scans == set()


def test_a_batch_of_ten_thousand_uploads_is_claimed_without_reading_or_sorting_them(large: Large) -> None:
    def claim(tx: Connection) -> None:
        taken = claims.claim(
            tx, dataset_id=large.afternoon, stage=Stage.EXTRACT, run_id="r", limit=100, lease_seconds=60
        )
        assert [c.filename for c in taken] == [f"{n}.txt" for n in range(109_999, 109_899, -1)]

    found = plans(large, claim, about="SKIP LOCKED")
    assert found.indexes == {"documents_waiting_idx", "documents_suspect"}
    assert found.nodes == {"Index Scan", "LockRows", "Limit"}


def test_only_the_views_over_everything_read_everything(large: Large) -> None:
    whole: dict[str, Call] = {
        "counts_of_all": lambda _, tx: datasets.counts_of_all(tx),
        "backfill_candidates": lambda _, tx: requeue.backfill_candidates(
            tx, fingerprint="f", extractor="extractor-1", tried_with="t", retryable=["transient"]
        ),
        "payers_of_pots": lambda _, tx: charges.payers_of_pots(tx, [("user", "u")]),
    }
    for call in whole.values():
        assert plans(large, lambda tx, call=call: call(large, tx)).scans & {"documents", "charges"}  # type: ignore[misc]


def test_every_named_query_on_documents_has_a_plan_here() -> None:
    functions = {
        name
        for module in (
            claims,
            generations,
            texts,
            manifest,
            datasets,
            charges,
            expired,
            jobs,
            requeue,
            deleted,
            moved,
            quarantine,
        )
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    within = {"insert_jobs", "start_jobs", "close_jobs", "lock_documents"}  # called by the others
    # Datasets are few.
    small = {"get", "every", "create", "mark_set_up", "is_set_up", "gone_datasets", "forget_datasets"}
    whole = {"counts_of_all", "backfill_candidates", "payers_of_pots"}
    named = {word for name in CALLS for word in name.split()}
    assert functions - within - small - whole - named == set()
