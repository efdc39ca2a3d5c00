"""The operations on the whole path, from upload to search, each with the scene before it, by name.

Belongs here: real uploads, runs, deletions, as the process that will be killed finds them, and what is to come of them.
Does not: what must hold in all stores afterwards (truth), killing (site).
"""

import os
import signal
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import text

from fltr_pipeline.models import Op, ReprocessMode, VectorRow
from fltr_pipeline.pipeline.billing import Billing, Settled, Settlement
from fltr_pipeline.stores.database import transaction
from fltr_pipeline_tests.crashes import runs, workers, writes
from fltr_pipeline_tests.crashes.hands import Hands
from fltr_pipeline_tests.crashes.points import First, Moment
from fltr_pipeline_tests.crashes.site import Site

CREDITS = 1_000

TREATY = (
    "The treaty of Westphalia ended the thirty years war.",
    "It was signed in the cities of Osnabrück and Münster.",
    "Nobody remembers the names of all who were there.",
    "Maps of the empire had to be drawn anew.",
)
BREAD = ("Knead flour, water, salt and yeast for ten minutes.", "Bake the loaf at 220 degrees for forty minutes.")
NEWS = "Historians still argue about what it really settled."

A, B, BROKEN = "a.txt", "b.md", "broken.pdf"


@dataclass(frozen=True, slots=True)
class Story(workers.Scene):
    """One customer's dataset. `texts`: by filename, what is to be searchable in the end, and nothing else is."""

    texts: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)
    """What is searchable now, and must stay so until its successor is."""
    failed: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()
    """Files whose document fails, or awaits credits, in the end."""
    ownerless: frozenset[str] = frozenset()
    """Files whose dataset's owner is gone: they are `ready` for ever, and search does not show them."""
    receipts: Mapping[str, int] = field(default_factory=dict)
    """Documents whose vectors are verified to be gone in the end, by what was deleted."""


Work = Callable[[Story, Hands], object]


@dataclass(frozen=True, slots=True)
class PathOperation:
    """What is killed, and what another worker does, or another person: the same, where nothing else is said."""

    name: str
    scene: Callable[[Site], Story]
    work: Work
    others: Work | None = None
    leaves: bool = False
    """Whether it leaves work for the reconciler, even if nobody dies."""
    drifted: bool = False
    """Whether Milvus and the manifest differ to begin with."""


def text_of(paragraphs: tuple[str, ...]) -> str:
    return "\n\n".join(paragraphs)


_FILES = {A: text_of(TREATY), B: text_of(BREAD)}
_EDITED = text_of((*TREATY[:2], NEWS, *TREATY[3:]))


def run(story: Story, hands: Hands) -> None:
    runs.run(hands, story.dataset)


def reprocess_all(story: Story, hands: Hands) -> None:
    """As one who looks first whether it was asked for already."""
    with transaction(hands.services.fltr) as tx:
        asked = tx.execute(_ASKED_AGAIN, {"dataset": story.dataset.id}).scalar_one()
    runs.run(hands, story.dataset, ReprocessMode.pending if asked else ReprocessMode.all)


def reprocess_stale(story: Story, hands: Hands) -> None:
    runs.run(hands, story.dataset, ReprocessMode.stale)


def upload_and_run(story: Story, hands: Hands) -> None:
    """An uploader who looks first at what is there, and a worker, in one process."""
    with transaction(hands.services.fltr) as tx:
        there = set(tx.execute(_UPLOADED, {"dataset": story.dataset.id, "times": 2 if story.before else 1}).scalars())
    for filename, content in story.texts.items():
        if story.before.get(filename) != content and filename not in there:
            runs.upload(hands, story.dataset, filename, content.encode())
    run(story, hands)


_ASKED_AGAIN = text("""
    SELECT EXISTS (SELECT FROM pipeline.documents WHERE dataset_id = :dataset AND generation > 1)
""")

# An upload of a document that is there moves `updated_at` alone.
_UPLOADED = text("""
    SELECT filename FROM public.documents WHERE dataset_id = :dataset AND (updated_at > created_at OR :times = 1)
""")


def reconcile(_: Story, hands: Hands) -> None:
    runs.reconcile(hands)


def run_and_die_decided(story: Story, hands: Hands) -> None:
    """Every vector is there and read back; nothing is settled."""
    settle = Billing.settle

    def dying(billing: Billing, settlements: Sequence[Settlement]) -> Settled:
        if any(s.charge.op is Op.DOCUMENT_EMBED for s in settlements):
            os.kill(os.getpid(), signal.SIGKILL)
        return settle(billing, settlements)

    Billing.settle = dying  # type: ignore[assignment,method-assign]
    run(story, hands)


def customer(site: Site, credits: int = CREDITS) -> Story:
    """With an empty dataset."""
    payer = site.world.user(credits)
    return Story(payer, site.world.dataset(payer), granted=credits)


def uploaded(site: Site, credits: int = CREDITS) -> Story:
    """New files; one of them can't be read."""
    story = customer(site, credits)
    for filename, content in _FILES.items():
        runs.upload(site.hands, story.dataset, filename, content.encode())
    runs.upload(site.hands, story.dataset, BROKEN, b"%PDF-1.7 and no more")
    return replace(story, texts=_FILES, failed=frozenset({BROKEN}))


def uploaded_to_a_new_milvus(site: Site) -> Story:
    site.world.drop_collection()
    return uploaded(site)


def to_be_uploaded(site: Site) -> Story:
    return replace(customer(site), texts=_FILES)


def unpaid(site: Site) -> Story:
    """Credits for all but embedding the longer file."""
    return replace(uploaded(site, credits=40), texts={B: _FILES[B]}, waiting=frozenset({A}))


def ready(site: Site) -> Story:
    """Both files were processed."""
    story = customer(site)
    for filename, content in _FILES.items():
        runs.upload(site.hands, story.dataset, filename, content.encode())
    runs.run(site.hands, story.dataset)
    return replace(story, texts=_FILES, before=_FILES)


def to_be_edited(site: Site) -> Story:
    return replace(ready(site), texts=_FILES | {A: _EDITED})


def edited(site: Site) -> Story:
    """Uploaded anew, one paragraph of it changed."""
    story = to_be_edited(site)
    runs.upload(site.hands, story.dataset, A, _EDITED.encode())
    return story


def stale(site: Site) -> Story:
    """Made with another configuration."""
    story = ready(site)
    site.world.change("UPDATE pipeline.generations SET fingerprint = 'old', extractor = 'old'")
    return story


def embedded_in_part(site: Site) -> Story:
    """An hour ago a worker died while it embedded an edit."""
    story = edited(site)
    site.kill(run, story, First("milvus", "insert", Moment.AFTER), writes.watch)
    site.an_hour_passes(story)
    return story


def decided(site: Site) -> Story:
    """An hour ago a worker died between decision and settlement of an edit."""
    story = edited(site)
    site.kill(run_and_die_decided, story, None, writes.watch)
    site.an_hour_passes(story)
    return story


def decided_and_edited(site: Site) -> Story:
    """As `decided`, and a newer input has come since: the one before it is never to be seen."""
    story = decided(site)
    newest = _FILES[A] + "\n\n" + NEWS
    runs.upload(site.hands, story.dataset, A, newest.encode())
    return replace(story, texts={**story.texts, A: newest})


def document_deleted(site: Site) -> Story:
    story = ready(site)
    site.world.change("DELETE FROM documents WHERE filename = %s", A)
    return replace(story, texts={B: _FILES[B]}, before={B: _FILES[B]}, receipts={"document": 1})


def document_deleted_at_work(site: Site) -> Story:
    """While it was embedded."""
    story = embedded_in_part(site)
    site.world.change("DELETE FROM documents WHERE filename = %s", A)
    return replace(story, texts={B: _FILES[B]}, before={B: _FILES[B]}, receipts={"document": 1})


def dataset_deleted(site: Site) -> Story:
    story = ready(site)
    site.world.change("DELETE FROM datasets WHERE id = %s", story.dataset.id)
    return replace(story, texts={}, before={}, receipts={"dataset": 2})


def user_deleted(site: Site) -> Story:
    """And with them, in `fltr_auth`, all that they had there. The rows in `public` stay."""
    story = ready(site)
    site.world.change_auth("DELETE FROM users WHERE id = %s", story.payer.user_id)
    return replace(story, texts={}, before={}, ownerless=frozenset(_FILES), receipts={"owner": 2})


def document_moved(site: Site) -> Story:
    """To another dataset of the same customer, who has another file there."""
    story = ready(site)
    target = site.world.dataset(story.payer, "target")
    runs.upload(site.hands, target, B, _FILES[B].encode())
    runs.run(site.hands, target)
    site.world.change("UPDATE documents SET dataset_id = %s WHERE filename = %s", target.id, A)
    return replace(story, dataset=target, before={B: _FILES[B]})


def document_that_moved(site: Site) -> Story:
    """As `document_moved`, and it is queued there."""
    story = document_moved(site)
    runs.reconcile(site.hands)
    return story


def upload_that_moved(site: Site) -> Story:
    """An edit, not yet claimed; the dataset that it was moved to is new."""
    story = edited(site)
    target = site.world.dataset(story.payer, "target")
    site.world.change("UPDATE documents SET dataset_id = %s WHERE filename = %s", target.id, A)
    return replace(story, dataset=target, before={}, texts={A: _EDITED})


def vectors_lost(site: Site) -> Story:
    """Milvus came back without some of what it had accepted."""
    story = ready(site)
    rows = site.world.vectors(story.dataset)
    site.hands.services.vectors.delete([row["key"] for row in rows if row["text"] in TREATY[1:]])
    return replace(story, before={B: _FILES[B]})


def vectors_orphaned(site: Site) -> Story:
    """Milvus has rows that nobody knows."""
    story = ready(site)
    vector = site.hands.services.model.encode([NEWS])[0]
    rows = [VectorRow(uuid.uuid4().hex, story.dataset.id, uuid.uuid4().hex, NEWS, vector) for _ in range(3)]
    site.hands.services.vectors.insert(rows)
    return story


_ALL = (
    PathOperation("first ingest", uploaded, run),
    PathOperation("first ingest of all", uploaded_to_a_new_milvus, run),
    PathOperation("ingest that credits do not cover", unpaid, run),
    PathOperation("upload", to_be_uploaded, upload_and_run),
    PathOperation("upload of an edit", to_be_edited, upload_and_run),
    PathOperation("run on a newer input than was decided", decided_and_edited, run, leaves=True),
    PathOperation("reprocess of all", ready, reprocess_all),
    PathOperation("reprocess of what is stale", stale, reprocess_stale),
    PathOperation("sweep of a document embedded in part", embedded_in_part, reconcile, others=run),
    PathOperation("sweep of a decided document", decided, reconcile, others=run),
    PathOperation("sweep of a deleted document", document_deleted, reconcile, others=run),
    PathOperation("sweep of a document deleted at work", document_deleted_at_work, reconcile, others=run),
    PathOperation("sweep of a deleted dataset", dataset_deleted, reconcile, others=run),
    PathOperation("sweep of a deleted user's dataset", user_deleted, reconcile, others=run),
    PathOperation("sweep of a moved document", document_moved, reconcile, others=run),
    PathOperation("run on a moved document", document_that_moved, run),
    PathOperation("run on an upload that was moved", upload_that_moved, run),
    PathOperation("sweep of lost vectors", vectors_lost, reconcile, others=run, drifted=True),
    PathOperation("sweep of orphan vectors", vectors_orphaned, reconcile, others=run, drifted=True),
)

PATH = {operation.name: operation for operation in _ALL}
