"""Claims: who works on which document, and how a document leaves a worker's hands.

Belongs here: fence, stage, status. Does not: how long a hold lasts (leases), jobs, text and chunks (generations),
amounts (charges).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, RowMapping, TextClause, text

from fltr_pipeline.models import Stage
from fltr_pipeline.stores.database import id_array, recordset
from fltr_pipeline.stores.fltr.jobs import close_jobs, insert_jobs, start_jobs
from fltr_pipeline.stores.fltr.leases import BACKOFF
from fltr_pipeline.stores.fltr.locks import existing, lock_documents, lock_free

_MOVED = 100
"""Documents that are elsewhere by now and are locked in passing, at most, but for a page."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A document in a worker's hands until its lease runs out."""

    document_id: str
    dataset_id: str
    filename: str
    generation: int
    live_generation: int | None
    fence: int
    job_id: str
    billable: bool
    attempts: int
    """Workers that died at it, in a row."""
    api_key_id: str | None = None
    """Digest of the API key that the input was uploaded with."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a document's attempt ended without a result."""

    claim: Claim
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    """A document whose pot can't cover the next step."""

    claim: Claim
    credits_needed: int
    pot_kind: str
    pot_id: str


# Index: documents_waiting_idx, in its own order: a batch out of twenty thousand uploads reads one batch. What was moved
# here is to be followed first (`moved`); that is looked up one by one, by the primary key.
_LOCK_UPLOADED = text("""
    SELECT d.id::text AS document_id, d.filename, d.updated_at::text AS input_version
    FROM public.documents d
    WHERE d.dataset_id = :dataset_id AND d.status = 'uploaded'
      AND NOT EXISTS (SELECT FROM pipeline.documents p
                      WHERE p.document_id = d.id::text AND p.dataset_id <> d.dataset_id::text OFFSET 0)
    ORDER BY d.created_at, d.id
    LIMIT :limit
    FOR UPDATE OF d SKIP LOCKED
""")

# Primary key. Who is just forgetting a document that was deleted and came back is waited for: the next statement then
# sees it done, and counts it.
_WAIT_FOR_KNOWN = text("SELECT FROM pipeline.documents WHERE document_id = ANY(:ids) ORDER BY document_id FOR UPDATE")

# A new input is a new generation; the same input claimed again (its worker died before it got anywhere) is not, unless
# its charges are those of a redo that was free. Where an attempt has staged a text, extraction, which sees the bytes,
# says whether the input is new (`renew`). One that was deleted and comes back goes on after its charges, and has fences
# of its own for each deletion: no charge, key or fence is used twice, so whoever worked on it before changes nothing.
# A redo that was free, and failed before anything was live, is tried again for nothing; all else is paid for.
_TAKE_UPLOADED = text("""
    WITH input AS (
        SELECT * FROM json_to_recordset(:rows) AS r(document_id text, input_version text)
    ), uploaded_with AS (
        DELETE FROM pipeline.upload_keys WHERE document_id = ANY(:ids) RETURNING document_id, api_key_id
    )
    INSERT INTO pipeline.documents AS p
        (document_id, dataset_id, input_version, stage, run_id, lease_until, api_key_id, generation, fence)
    SELECT r.document_id, :dataset_id, r.input_version, 'extract', :run_id, now() + make_interval(secs => :lease),
           k.api_key_id,
           1 + coalesce((SELECT max(c.generation) FROM pipeline.charges c WHERE c.subject_id = r.document_id), 0),
           1 + ((SELECT count(*) FROM pipeline.deletions x WHERE x.document_id = r.document_id) << 32)
    FROM input r LEFT JOIN uploaded_with k USING (document_id)
    ORDER BY r.document_id
    ON CONFLICT (document_id) DO UPDATE SET
        input_version = excluded.input_version,
        generation = p.generation + CASE
            WHEN p.billable AND EXISTS (SELECT FROM pipeline.generations g
                                        WHERE g.document_id = p.document_id AND g.generation = p.generation
                                          AND g.state <> 'live')
            THEN 0
            ELSE (p.stage IS NULL OR p.input_version <> excluded.input_version OR NOT p.billable)::int END,
        api_key_id = CASE WHEN p.input_version = excluded.input_version
                          THEN coalesce(excluded.api_key_id, p.api_key_id) ELSE excluded.api_key_id END,
        billable = p.billable OR p.stage IS NOT NULL OR p.live_generation IS NOT NULL
                   OR p.input_version <> excluded.input_version,
        stage = 'extract', fence = p.fence + 1,
        run_id = excluded.run_id, lease_until = excluded.lease_until,
        attempts = 0, retries = 0, retry_at = NULL, credits_needed = NULL,
        error_code = NULL, error_message = NULL, error_at = NULL, error_extractor = NULL
    WHERE p.dataset_id = excluded.dataset_id
    RETURNING p.document_id, p.generation, p.live_generation, p.fence, p.job_id, p.billable, p.attempts, p.api_key_id
""")

# A claim skips what others hold, here and in public.documents, and never waits: two workers share what is parked, and
# taking these rows first can't deadlock. The limit is hidden from the planner: where a dataset was queued a moment ago,
# it takes what waits for little, and would rather sort all of it than follow the index.
_PARKED = """
    SELECT document_id, {order} AS rank, lease_until IS NOT NULL AS taken_over
    FROM pipeline.documents
    WHERE dataset_id = :dataset_id AND stage = :stage
      AND (lease_until IS NULL OR lease_until < now())
      AND (retry_at IS NULL OR retry_at <= now())
      AND NOT (credits_needed IS NOT NULL AND (run_id = :run_id OR coalesce(retry_at >= :since, false)))
      AND {which} AND ({order}, document_id) > (:rank, :after)
    ORDER BY {order}, document_id
    LIMIT (SELECT CAST(:limit AS integer))
    FOR UPDATE SKIP LOCKED
"""

# A worker died with it in hand; which document of those that it held is to blame, only the next death tells.
_IS_SUSPECT = "(attempts > 0 OR (lease_until IS NOT NULL AND run_id <> ''))"

# Index: pipeline.documents_by_stage, in its own order: a batch out of a million reads one batch.
_PARKED_INNOCENTS = text(_PARKED.format(which=f"NOT {_IS_SUSPECT}", order="coalesce(credits_needed, 0)"))

# Index: pipeline.documents_suspect, in its own order.
_PARKED_SUSPECTS = text(_PARKED.format(which=_IS_SUSPECT, order="attempts"))

# `retry_at` of a document in hand: when another worker may try it, should this one die, too.
_TAKE_PARKED = text(f"""
    UPDATE pipeline.documents p
    SET fence = fence + 1, run_id = :run_id, lease_until = now() + make_interval(secs => :lease),
        attempts = o.deaths, credits_needed = NULL,
        retry_at = CASE WHEN o.deaths > 0
                        THEN now() + make_interval(secs => :lease) + {BACKOFF.format(failures="o.deaths")} END
    FROM (SELECT d.document_id AS id, d.attempts + (d.lease_until IS NOT NULL AND d.run_id <> '')::int AS deaths
          FROM pipeline.documents d WHERE d.document_id = ANY(:ids)) o
    WHERE document_id = o.id AND stage = :stage
      AND (lease_until IS NULL OR lease_until < now()) AND (retry_at IS NULL OR retry_at <= now())
    RETURNING document_id, generation, live_generation, fence, job_id, billable, attempts, api_key_id
""")  # noqa: S608 - of constants

# A document that was deleted, or uploaded anew, has nothing more to do at the stage where it stood, unless that is the
# first: there the upload is claimed as it stands, so that the same input keeps its generation.
_DEQUEUE = text("""
    UPDATE pipeline.documents SET stage = NULL, lease_until = NULL, credits_needed = NULL, fence = fence + 1
    WHERE document_id = ANY(:ids) AND (lease_until IS NULL OR lease_until < now())
""")

# `updated_at` is the uploader's: with the status `uploaded` it is the input version, so no write of ours touches it.
_SET_STATUS = text("UPDATE public.documents SET status = :status WHERE id = ANY(:ids) AND status = ANY(:before)")

_ADVANCE = text("""
    UPDATE pipeline.documents p
    SET stage = :stage, lease_until = NULL, attempts = 0, retries = 0, retry_at = NULL
    FROM json_to_recordset(:rows) AS r(document_id text, fence bigint)
    WHERE p.document_id = r.document_id AND p.fence = r.fence
    RETURNING p.document_id
""")

# Primary key.
_RENEW = text("""
    UPDATE pipeline.documents p SET generation = p.generation + 1
    FROM json_to_recordset(:rows) AS r(document_id text, fence bigint)
    WHERE p.document_id = r.document_id AND p.fence = r.fence
    RETURNING p.document_id, p.generation
""")

_REFENCE = text("""
    UPDATE pipeline.documents p SET fence = p.fence + 1
    FROM json_to_recordset(:rows) AS r(document_id text, fence bigint)
    WHERE p.document_id = r.document_id AND p.fence = r.fence AND p.lease_until IS NOT NULL
    RETURNING p.document_id, p.fence
""")

# Primary keys. What befalls the repair of an older version says nothing of why the newer input failed: its job tells.
_ENDED = """
    json_to_recordset(:rows) AS r(document_id text, fence bigint, code text, message text)
    LEFT JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = r.document_id AND d.status = 'failed'
"""
_IS_REPAIR = "(d.id IS NOT NULL AND p.error_code IS NOT NULL)"
_TOLD = f"""
    error_code = CASE WHEN {_IS_REPAIR} THEN p.error_code ELSE r.code END,
    error_message = CASE WHEN {_IS_REPAIR} THEN p.error_message ELSE r.message END,
    error_at = CASE WHEN {_IS_REPAIR} THEN p.error_at ELSE now() END
"""

# Failures in a row that are alike: a store's hour of silence is none of a document's own.
_RETRIES = f"CASE WHEN {_IS_REPAIR} OR p.error_code = r.code THEN p.retries ELSE 0 END"

# Each at another time: one that can't be done would keep those from success that come back with it.
_RETRY = text(f"""
    UPDATE pipeline.documents p
    SET lease_until = NULL, retries = 1 + {_RETRIES}, {_TOLD},
        retry_at = now() + (1 + random() / 2) * {BACKOFF.format(failures=_RETRIES)}
    FROM {_ENDED}
    WHERE p.document_id = r.document_id AND p.lease_until IS NOT NULL
      AND (p.fence = r.fence OR (p.fence > r.fence AND p.run_id = :run_id))
    RETURNING p.document_id, p.retries
""")  # noqa: S608 - of constants

# What had failed before stays to be paid for: the free attempt was at the version before it.
_FAIL = text(f"""
    UPDATE pipeline.documents p
    SET stage = NULL, lease_until = NULL, retries = 0, retry_at = NULL, billable = p.billable OR d.id IS NOT NULL,
        {_TOLD}
    FROM {_ENDED}
    WHERE p.document_id = r.document_id AND p.fence = r.fence
    RETURNING p.document_id, p.live_generation
""")  # noqa: S608 - of constants

# `ready` without a version that is live: it was withdrawn, and can't be made searchable again.
_SET_FAILED = text("""
    UPDATE public.documents SET status = 'failed'
    WHERE id = ANY(:ids) AND (status IN ('processing', 'awaiting_credits') OR status = 'ready' AND id = ANY(:not_live))
""")

_WAIT = text("""
    UPDATE pipeline.documents p SET credits_needed = r.credits_needed, pot_kind = r.pot_kind, pot_id = r.pot_id,
        lease_until = NULL, retry_at = now()  -- when it was refused
    FROM json_to_recordset(:rows) AS r(document_id text, fence bigint, credits_needed int, pot_kind text, pot_id text)
    WHERE p.document_id = r.document_id AND p.fence = r.fence
    RETURNING p.document_id
""")


def claim(
    tx: Connection, *, dataset_id: str, stage: Stage, run_id: str, limit: int, lease_seconds: float,
    since: datetime | None = None,
) -> list[Claim]:  # fmt: skip
    """Take up to `limit` documents that wait at `stage`; several workers may call this at once.

    What a dead worker left behind comes first and alone (its job is closed and a new one begun), so that the next death
    can be blamed on nothing else; then new uploads, at the first stage, and what was parked. Documents that await
    credits are offered once per run, and not if refused after `since`: two runs would hand them to and fro.
    """
    here: dict[str, object] = {"dataset_id": dataset_id, "stage": stage.value, "run_id": run_id}
    parameters = here | {"lease": lease_seconds, "since": since}
    if suspect := _claim_parked(tx, _PARKED_SUSPECTS, parameters | {"limit": min(1, limit)}):
        return suspect
    claims: list[Claim] = []
    if stage is Stage.EXTRACT:
        claims = _claim_uploaded(tx, dataset_id, run_id, limit, lease_seconds)
    if len(claims) < limit:
        claims += _claim_parked(tx, _PARKED_INNOCENTS, parameters | {"limit": limit - len(claims)})
    return claims


def _claim_uploaded(tx: Connection, dataset_id: str, run_id: str, limit: int, lease: float) -> list[Claim]:
    found = tx.execute(_LOCK_UPLOADED, {"dataset_id": dataset_id, "limit": limit}).mappings()
    rows = {r["document_id"]: r for r in found}
    if not rows:
        return []
    inputs = [{"document_id": i, "input_version": r["input_version"]} for i, r in rows.items()]
    tx.execute(_WAIT_FOR_KNOWN, {"ids": list(rows)})
    parameters = {"dataset_id": dataset_id, "run_id": run_id, "lease": lease, "ids": list(rows)}
    taken = tx.execute(_TAKE_UPLOADED, parameters | {"rows": recordset(inputs)}).mappings()
    states = {r["document_id"]: r for r in taken}
    close_jobs(tx, [r["job_id"] for r in states.values() if r["job_id"]], "canceled")
    jobs = insert_jobs(tx, list(states), "running")
    _processing(tx, states)
    return [_claim(i, dataset_id, rows[i]["filename"], states[i], jobs[i]) for i in rows if i in states]


def _lock_parked(
    tx: Connection, parked: TextClause, parameters: Mapping[str, object]
) -> tuple[dict[str, bool], dict[str, str]]:
    """What waits at a stage and nobody holds: id → whether its worker died, and id → filename, both rows locked.

    What was moved to another dataset is left to be followed there (`moved`): here it may be that nobody pays any more.
    Where that is much, no more of it is locked: a run that claims nothing has it followed.
    """
    rank, after, moved = -1, "", 0
    while moved < _MOVED and (found := tx.execute(parked, {**parameters, "rank": rank, "after": after}).all()):
        waiting = {r.document_id: r.taken_over for r in found}
        free = lock_free(tx, list(waiting))
        known = existing(tx, list(waiting)) if len(free) < len(waiting) else free.keys()
        uploaded = {i for i, d in free.items() if d.status == "uploaded"}
        left = uploaded if parameters["stage"] != Stage.EXTRACT else set[str]()
        lost = [i for i in waiting if i in left or i not in known]
        if lost:
            tx.execute(_DEQUEUE, {"ids": lost})
        here = [i for i, d in free.items() if d.dataset_id == parameters["dataset_id"]]
        if names := {i: free[i].filename for i in here if i not in uploaded}:
            return waiting, names
        rank, after, moved = found[-1].rank, found[-1].document_id, moved + len(free) - len(here)
    return {}, {}


def _claim_parked(tx: Connection, parked: TextClause, parameters: Mapping[str, object]) -> list[Claim]:
    waiting, names = _lock_parked(tx, parked, parameters)
    if not names:
        return []
    taken = tx.execute(_TAKE_PARKED, {**parameters, "ids": list(names)}).mappings()
    states = {r["document_id"]: r for r in taken}
    over = [i for i in states if waiting[i] or states[i]["job_id"] is None]
    close_jobs(tx, [states[i]["job_id"] for i in over if states[i]["job_id"]], "failed")
    jobs = insert_jobs(tx, over, "running")
    kept = {i: s["job_id"] for i, s in states.items() if i not in jobs}
    start_jobs(tx, list(kept.values()))
    _processing(tx, states)
    jobs |= kept
    dataset_id = str(parameters["dataset_id"])
    return [_claim(i, dataset_id, names[i], states[i], jobs[i]) for i in waiting if i in states]


def _processing(tx: Connection, ids: Iterable[str]) -> None:
    before = ["uploaded", "awaiting_credits"]
    tx.execute(_SET_STATUS, {"ids": id_array(ids), "status": "processing", "before": before})


def _claim(document_id: str, dataset_id: str, filename: str, state: RowMapping, job_id: str) -> Claim:
    return Claim(
        document_id, dataset_id, filename, state["generation"], state["live_generation"], state["fence"], job_id,
        state["billable"], state["attempts"], state["api_key_id"],
    )  # fmt: skip


def _fenced(claims: Sequence[Claim]) -> str:
    return recordset(
        {"document_id": c.document_id, "fence": c.fence} for c in sorted(claims, key=lambda c: c.document_id)
    )


def _failed(failures: Sequence[Failure]) -> dict[str, object]:
    rows = recordset(
        {"document_id": f.claim.document_id, "fence": f.claim.fence, "code": f.code, "message": f.message}
        for f in sorted(failures, key=lambda f: f.claim.document_id)
    )
    return {"rows": rows, "ids": id_array(f.claim.document_id for f in failures)}


def advance(tx: Connection, claims: Sequence[Claim], stage: Stage) -> set[str]:
    """Park the documents at their next stage, for any worker to take."""
    return set(tx.execute(_ADVANCE, {"rows": _fenced(claims), "stage": stage.value}).scalars())


def renew(tx: Connection, claims: Sequence[Claim]) -> list[Claim]:
    """Claim as a new generation what turns out to be another input than the attempt before was for."""
    made = {r.document_id: r.generation for r in tx.execute(_RENEW, {"rows": _fenced(claims)})}
    return [replace(c, generation=made[c.document_id]) for c in claims if c.document_id in made]


def refence(tx: Connection, claims: Sequence[Claim]) -> list[Claim]:
    """Claim again what is still in hand, to start over: what the first try wrote counts as another worker's."""
    fences = {r.document_id: r.fence for r in tx.execute(_REFENCE, {"rows": _fenced(claims)})}
    return [replace(c, fence=fences[c.document_id]) for c in claims if c.document_id in fences]


def retry_later(tx: Connection, claims: Sequence[Claim], message: str, run_id: str = "") -> set[str]:
    """Park the documents where they are, to be tried again after about 5 s, doubling to 10 min.

    `run_id`: of the worker, which may itself have claimed them again since.
    """
    return set(put_back(tx, [Failure(c, "transient", message) for c in claims], run_id))


def put_back(tx: Connection, failures: Sequence[Failure], run_id: str = "") -> dict[str, int]:
    """`retry_later`, each for a reason of its own; returns how many times in a row it failed for that one, by id."""
    rows = tx.execute(_RETRY, _failed(failures) | {"run_id": run_id or None})
    return {r.document_id: r.retries for r in rows}


def fail(tx: Connection, failures: Sequence[Failure]) -> set[str]:
    """End the attempts. A `ready` document stays so if it has a live version; a newer upload stays `uploaded`.

    One that is `failed` already keeps its failure: the attempt was at the version before it.
    """
    lock_documents(tx, [f.claim.document_id for f in failures])
    done = {r.document_id: r.live_generation for r in tx.execute(_FAIL, _failed(failures))}
    not_live = [i for i, generation in done.items() if generation is None]
    tx.execute(_SET_FAILED, {"ids": id_array(done), "not_live": id_array(not_live)})
    close_jobs(tx, [f.claim.job_id for f in failures if f.claim.document_id in done], "failed")
    return set(done)


def wait_for_credits(tx: Connection, waits: Sequence[Wait]) -> set[str]:
    """Park the documents until their pot can pay. A `ready` document that is being redone stays so."""
    lock_documents(tx, [w.claim.document_id for w in waits])
    rows = recordset(
        {"document_id": w.claim.document_id, "fence": w.claim.fence,
         "credits_needed": w.credits_needed, "pot_kind": w.pot_kind, "pot_id": w.pot_id}
        for w in waits
    )  # fmt: skip
    done = set(tx.execute(_WAIT, {"rows": rows}).scalars())
    tx.execute(_SET_STATUS, {"ids": id_array(done), "status": "awaiting_credits", "before": ["processing"]})
    return done
