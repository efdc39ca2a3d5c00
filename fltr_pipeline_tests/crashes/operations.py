"""The operations on the ledger, each with the scene before it, by name.

Belongs here: real uploads, claims, charges and holds, as the worker that will be killed finds them. Does not: what it
does to them (workers), what must hold afterwards (books).
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fltr_pipeline.credits.holds import Close, CloseState
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline.billing import Quote, hold_of
from fltr_pipeline.stores.fltr import charges
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline_tests.crashes import workers
from fltr_pipeline_tests.crashes.hands import PRICES
from fltr_pipeline_tests.crashes.site import Site
from fltr_pipeline_tests.crashes.workers import EMBEDDED, GRANTED, RESERVED, USED, Scene, Work
from fltr_pipeline_tests.money import add_key, add_team, join
from fltr_pipeline_tests.queries import words

OPENING = 7
"""Credits of each pot that no row explains: they were there before the ledger."""

CREDITS = 50

_TEXT = "flour water"  # two words: EMBEDDED tokens


@dataclass(frozen=True, slots=True)
class Operation:
    """What is killed, and what must have come of it. Credits."""

    name: str
    scene: Callable[[Site], Scene]
    work: Work
    resume: Work = workers.resume
    charged: int = USED
    """What all work of the scene costs once another worker has repeated it."""
    swept: Sequence[int] = (0,)
    """What it may cost when only a sweep follows."""
    granted: Sequence[int] = (0,)
    """What was granted by then; the first of two only if nobody has repeated it."""


def uploaded(site: Site, *, files: int = 1, credits: int = CREDITS) -> Scene:
    """A new user's documents, with nobody yet."""
    payer = site.world.user(credits)
    site.world.change_auth("UPDATE user_credits SET credits = credits + %s WHERE user_id = %s", OPENING, payer.user_id)
    dataset = site.world.dataset(payer)
    site.fltr.upload(dataset, *(f"{n}.txt" for n in range(files)))
    return Scene(payer, dataset, granted=credits)


def new_pot(site: Site) -> Scene:
    return workers.claim(uploaded(site), site.hands)


def known_pot(site: Site) -> Scene:
    scene = new_pot(site)
    workers.grant(scene, site.hands)
    return replace(scene, granted=scene.granted + GRANTED)


def key_pool(site: Site) -> Scene:
    """An API key with a pool of its own, and limits on it."""
    scene = uploaded(site)
    key = add_key(site.world, scene.payer, credits=OPENING, daily=OPENING, monthly=OPENING)
    return workers.claim(replace(scene, payer=key.payer), site.hands)


def key_pool_reserved(site: Site) -> Scene:
    return reserved(site, key_pool)


def team_pot(site: Site) -> Scene:
    """Their team pays for the user."""
    scene = uploaded(site)
    team = add_team(site.world, scene.payer, credits=OPENING)
    return workers.claim(replace(scene, payer=join(site.world, scene.payer, team)), site.hands)


def team_pot_reserved(site: Site) -> Scene:
    return reserved(site, team_pot)


def batch(site: Site) -> Scene:
    return workers.claim(uploaded(site, files=3), site.hands)


def poor_pot(site: Site) -> Scene:
    """Enough for two, with a unit left for planning and one for embedding each."""
    each = RESERVED + PRICES.plan + PRICES.embed
    return workers.claim(uploaded(site, files=3, credits=2 * each - OPENING), site.hands)


def reserved(site: Site, made: Callable[[Site], Scene] = new_pot) -> Scene:
    scene = made(site)
    return replace(scene, charges=workers.reserve(scene, site.hands).granted)


def batch_reserved(site: Site) -> Scene:
    return reserved(site, batch)


def swept(site: Site) -> Scene:
    """The hold expired while its worker slept; that worker still believes in its fence."""
    scene = reserved(site)
    site.an_hour_passes(scene)
    workers.sweep(scene, site.hands)
    return scene


def taken_over(site: Site) -> Scene:
    """As `swept`, in the hands of the next worker."""
    return workers.claim(swept(site), site.hands)


def released_unrecorded(site: Site) -> Scene:
    """Somebody closed the hold, the charge does not say so; the fence is still the worker's."""
    scene = reserved(site)
    _release(scene, site)
    return scene


def charge_written(site: Site) -> Scene:
    """The hold never landed."""
    scene = new_pot(site)
    (claim,), payer = scene.claims, scene.payer
    draft = Charge(
        subject_id=claim.document_id, op=scene.op, generation=claim.generation, dataset_id=claim.dataset_id,
        amount=RESERVED, user_id=payer.user_id, pot_kind=payer.pot.kind, pot_id=payer.pot.id, unit_price=1,
        price_version=PRICES.version, job_id=claim.job_id,
    )  # fmt: skip
    with site.fltr.transaction() as tx:
        (written,) = charges.write_charges(tx, [draft], {claim.document_id: claim.fence})
    return replace(scene, charges={claim.document_id: written})


def extracted(site: Site, made: Callable[[Site], Scene] = new_pot) -> Scene:
    """Extraction is paid for."""
    scene = reserved(site, made)
    (claim,) = scene.claims
    site.fltr.stage_text(claim, _TEXT)
    workers.settle(scene, site.hands)
    return scene


def planned(site: Site, made: Callable[[Site], Scene] = new_pot) -> Scene:
    """At the last stage, its plan free of charge, embedding reserved."""
    scene = made(site)
    (claim,) = scene.claims
    site.fltr.stage_text(claim, _TEXT)
    site.fltr.advance([claim], Stage.PLAN)
    (claim,) = site.fltr.claim(scene.dataset, Stage.PLAN)
    site.fltr.plan(claim, words(_TEXT))
    site.fltr.advance([claim], Stage.EMBED)
    scene = workers.claim(replace(scene, stage=Stage.EMBED), site.hands)
    return replace(scene, charges=workers.reserve(scene, site.hands).granted)


def planned_released(site: Site) -> Scene:
    """As `planned`, but somebody closed the hold meanwhile."""
    scene = planned(site)
    _release(scene, site)
    return scene


def extracted_and_planned(site: Site) -> Scene:
    return planned(site, extracted)


def key_pool_extracted_and_planned(site: Site) -> Scene:
    return planned(site, lambda site: extracted(site, key_pool))


def failed(site: Site) -> Scene:
    """By our fault, and the worker died before it gave anything back."""
    scene = extracted_and_planned(site)
    workers.fail(scene, site.hands)
    return scene


def set_up_begun(site: Site) -> Scene:
    """A set-up is held, and no run came back to it."""
    scene = uploaded(site)
    quote = Quote(scene.dataset.id, 1, None, 1, True, scene.payer, None, site.hands.name)
    site.hands.billing.reserve(Op.DATASET_SETUP, scene.dataset.id, [quote])
    site.an_hour_passes(scene)
    return scene


def set_up_swept(site: Site) -> Scene:
    scene = set_up_begun(site)
    workers.sweep(scene, site.hands)
    return scene


def expired(site: Site) -> Scene:
    scene = reserved(site)
    site.an_hour_passes(scene)
    return scene


def expired_unlanded(site: Site) -> Scene:
    scene = charge_written(site)
    site.an_hour_passes(scene)
    return scene


def expired_decided(site: Site) -> Scene:
    scene = planned(site)
    workers.decide(scene, site.hands)
    site.an_hour_passes(scene)
    return scene


def expired_batch(site: Site) -> Scene:
    scene = batch_reserved(site)
    site.an_hour_passes(scene)
    return scene


def expired_decided_released(site: Site) -> Scene:
    """The hold was closed by somebody meanwhile: it is to be had again before anything is published."""
    scene = expired_decided(site)
    _release(scene, site)
    return scene


def deleted(site: Site) -> Scene:
    scene = reserved(site)
    site.world.change("DELETE FROM documents WHERE dataset_id = %s", scene.dataset.id)
    site.an_hour_passes(scene)
    return scene


def moved_on(site: Site) -> Scene:
    """Uploaded anew and claimed as the next generation; the hold of the first is left."""
    scene = reserved(site)
    (claim,) = scene.claims
    site.fltr.upload_anew(scene.dataset, claim.document_id)
    scene = workers.claim(scene, site.hands)
    site.an_hour_passes(scene)
    return scene


def orphaned(site: Site) -> Scene:
    """A hold that no charge stands for."""
    scene = reserved(site)
    (charge,) = scene.charges.values()
    workers.settle_nothing(scene, site.hands)
    orphan = replace(hold_of(charge), subject_id=str(uuid.uuid4()))
    site.hands.services.ledger.reserve([orphan])
    site.an_hour_passes(scene)
    return scene


def _release(scene: Scene, site: Site) -> None:
    holds = [hold_of(c) for c in scene.charges.values()]
    site.hands.services.ledger.close([Close(h, 0, CloseState.RELEASED, "expired") for h in holds])


_SWEPT = workers.sweep_and_resume

_ALL = (
    Operation("reserve of a new pot", new_pot, workers.reserve),
    Operation("reserve of a known pot", known_pot, workers.reserve, granted=(GRANTED,)),
    Operation("reserve from a team's pot", team_pot, workers.reserve),
    Operation("reserve from an API key's pool", key_pool, workers.reserve),
    Operation("reserve of a batch", batch, workers.reserve, charged=3 * USED),
    Operation("reserve of what the pot covers", poor_pot, workers.reserve, charged=2 * USED),
    Operation("reserve after a release", taken_over, workers.reserve),
    Operation("reserve after an unrecorded release", released_unrecorded, workers.reserve),
    Operation("settle, charged in part", reserved, workers.settle, swept=(0, USED)),
    Operation(
        "settle, charged whole", reserved, workers.settle_whole, workers.resume_whole,
        charged=RESERVED, swept=(0, RESERVED),
    ),
    Operation("settle, nothing charged", reserved, workers.settle_nothing, workers.resume_for_nothing, charged=0),
    Operation("settle of a batch", batch_reserved, workers.settle, charged=3 * USED, swept=(0, 3 * USED)),
    Operation("settle to an API key's pool", key_pool_reserved, workers.settle, swept=(0, USED)),
    Operation("settle after the sweep", swept, workers.settle),
    Operation("settle of a released hold", released_unrecorded, workers.settle, swept=(0, USED)),
    Operation("settle and publish", planned, workers.embed, charged=EMBEDDED, swept=(0, EMBEDDED)),
    Operation(
        "settle and publish without a hold", planned_released, workers.embed, charged=EMBEDDED, swept=(0, EMBEDDED)
    ),
    Operation("give up", extracted_and_planned, workers.give_up, workers.give_up_too, charged=0, swept=(0, USED)),
    Operation(
        "give up to an API key's pool", key_pool_extracted_and_planned, workers.give_up, workers.give_up_too,
        charged=0, swept=(0, USED),
    ),
    Operation("void of a hold", reserved, workers.void),
    Operation("void of a hold on a team's pot", team_pot_reserved, workers.void),
    Operation("void of what never landed", charge_written, workers.void),
    Operation("sweep of a hold", expired, workers.sweep, _SWEPT),
    Operation("sweep of a batch", expired_batch, workers.sweep, _SWEPT, charged=3 * USED),
    Operation("sweep of what never landed", expired_unlanded, workers.sweep, _SWEPT),
    Operation(
        "sweep of a decided document", expired_decided, workers.sweep, _SWEPT, charged=EMBEDDED, swept=(EMBEDDED,)
    ),
    Operation(
        "sweep of a decided document without a hold", expired_decided_released, workers.sweep, _SWEPT,
        charged=EMBEDDED, swept=(EMBEDDED,),
    ),
    Operation("sweep of a deleted document", deleted, workers.sweep, _SWEPT, charged=0),
    Operation("sweep of an earlier generation", moved_on, workers.sweep, _SWEPT),
    Operation("sweep of an orphan", orphaned, workers.sweep, _SWEPT),
    Operation("sweep of what is to be given back", failed, workers.sweep, _SWEPT, charged=0),
    Operation("sweep of a set-up", set_up_begun, workers.sweep, _SWEPT),
    Operation(
        "grant to a new pot", uploaded, workers.grant, workers.grant_unless_there, charged=0, granted=(0, GRANTED)
    ),
    Operation("set-up of a dataset", uploaded, workers.set_up_dataset, workers.set_up_dataset, swept=(0, USED)),
    Operation("set-up after the sweep", set_up_swept, workers.set_up_dataset, workers.set_up_dataset, swept=(0, USED)),
)  # fmt: skip

OPERATIONS = {operation.name: operation for operation in _ALL}
