"""An `fltr` of 100,000 documents, and the plans that PostgreSQL makes on it.

Belongs here: the load, what its documents look like to a worker, asking for plans. Does not: which plans are right.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Engine, event, text

from fltr_pipeline.models import Op
from fltr_pipeline.stores.database import id_array
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.queries import Fltr

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

INSERT INTO pipeline.deletions (document_id, dataset_id, cause, vectors, verified_at)
SELECT id, dataset_id, 'document', 1, now() FROM made;

INSERT INTO pipeline.charges (subject_id, op, generation, dataset_id, amount, user_id, pot_kind, pot_id, price_version,
                              unit_price, state)
SELECT id, 'document_plan', 1, dataset_id, 1, 'u', 'user', 'u', 'v', 1, CASE kind WHEN 1 THEN 'open' ELSE 'settled' END
FROM made WHERE kind > 0;

INSERT INTO pipeline.quarantine (source_sha256, tried_with, source_bytes, code, tries, in_force)
SELECT md5('q' || n), 't', n, 'gave_up', 5, n % 2 = 0 FROM made;

INSERT INTO pipeline.upload_keys SELECT id, repeat('1', 64) FROM made WHERE kind < 1;
"""

LARGE = {"documents", "processing_jobs", "generations", "chunks", "retired_keys", "charges", "quarantine", "deletions"}
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

    def park(self, tx: Connection) -> list[str]:
        """What another extractor brings with it: the 10,000 are ready, and wait to be made anew; returns their ids."""
        ready = (
            "UPDATE public.documents SET status = 'ready' WHERE status = 'uploaded' AND dataset_id::text = :dataset_id"
        )
        tx.execute(text(ready), {"dataset_id": self.afternoon})
        park = "UPDATE pipeline.documents SET stage = 'extract' WHERE dataset_id = :dataset_id RETURNING document_id"
        return list(tx.execute(text(park), {"dataset_id": self.afternoon}).scalars())

    def plan(self, tx: Connection) -> None:
        """The next version of the 10,000 has its chunks, and none is embedded yet."""
        chunks = (
            "SELECT document_id, 2, n, NULL, true, '', 1, n, n + 4, 2 FROM pipeline.documents, generate_series(0, 19) n"
        )
        statement = f"INSERT INTO pipeline.chunks {chunks} WHERE dataset_id = :dataset_id"
        tx.execute(text(statement), {"dataset_id": self.afternoon})

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


def loaded(fltr: Fltr) -> Large:
    """Fill a fresh database."""
    fltr.change(LOAD)
    with fltr.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    small, owner, afternoon, ids = fltr.one(
        "SELECT md5('s0')::uuid::text, md5('u0')::uuid::text, md5('s5000')::uuid::text,"
        " array_agg(md5('d' || n)::uuid::text)"
        " FROM generate_series(25000, 99999, 5000) n"
    )
    keys = [key for (key,) in fltr.rows("SELECT key FROM pipeline.chunks ORDER BY key LIMIT 100")]
    return Large(fltr, Dataset(small, owner, "dataset 0"), afternoon, tuple(ids), tuple(keys))


@dataclass(frozen=True)
class Plans:
    """What PostgreSQL would do for the statements of one call."""

    indexes: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    scans: set[str] = field(default_factory=set)
    """Large tables that are read as a whole."""


def plans(engine: Engine, call: Callable[[Connection], object], about: str = "") -> Plans:
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

    with engine.connect() as connection:
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
