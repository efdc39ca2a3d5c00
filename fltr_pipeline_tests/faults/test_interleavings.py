"""Uploads, edits, deletions, top-ups, deaths and restarts in any order: when all is at rest, all is as it should be.

FLTR_FAULTS=long (`make test-faults`) runs many long schedules, `make test` a short one. FLTR_SEED draws the same again.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from fltr_pipeline.pipeline import extract
from fltr_pipeline.pipeline.audit import audit_ledger
from fltr_pipeline.stores.schema import init_databases
from fltr_pipeline.text.chunk import chunk_text
from fltr_pipeline_tests.crashes import runs, truth
from fltr_pipeline_tests.crashes.books import Books
from fltr_pipeline_tests.crashes.engine import DigestModel, ParserHere
from fltr_pipeline_tests.crashes.hands import CHUNK_TOKENS, PRICES
from fltr_pipeline_tests.crashes.site import BusyWorld
from fltr_pipeline_tests.faults.interleavings import Customer, Town
from fltr_pipeline_tests.faults.own_server import OwnServer, own_server
from fltr_pipeline_tests.milvus_lite import MilvusLite
from fltr_pipeline_tests.seed import SEED
from fltr_pipeline_tests.world import World

LONG = os.environ.get("FLTR_FAULTS") == "long"
EVENTS, SCHEDULES = (600, 10) if LONG else (50, 1)

# What a generation that is live was charged for, beside what it came to.
_MISCHARGED = """
    SELECT p.document_id, g.fresh_tokens, c.state, c.charged
    FROM pipeline.documents p
    JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.live_generation
    LEFT JOIN pipeline.charges c ON c.subject_id = p.document_id AND c.generation = g.generation
                                AND c.op = 'document_embed' AND c.state = 'settled'
    WHERE p.dataset_id = %s AND p.billable AND p.stage IS NULL AND coalesce(c.charged, 0) <> g.fresh_tokens
"""

_NEEDED = "SELECT credits_needed FROM pipeline.documents WHERE credits_needed IS NOT NULL AND dataset_id = %s"


@pytest.fixture(scope="module")
def postgres(short_tmp: Path) -> Iterator[OwnServer]:
    with own_server(short_tmp) as server:
        yield server


@pytest.fixture(scope="module")
def milvus(short_tmp: Path) -> Iterator[MilvusLite]:
    with MilvusLite(short_tmp / "milvus of the town") as server:
        yield server


@pytest.fixture
def world(postgres: OwnServer, milvus: MilvusLite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """On these servers."""
    names = [f"{kind}_{uuid.uuid4().hex[:8]}" for kind in ("fltr", "auth")]
    with psycopg.connect(postgres.uri, autocommit=True) as connection:
        for name in names:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
    fltr, auth = (postgres.uri.replace("/postgres?", f"/{name}?", 1) for name in names)
    init_databases(fltr, auth)
    world = World(fltr_admin=fltr, auth_admin=auth, milvus_uri=milvus.uri, blobs=tmp_path / "blobs")
    monkeypatch.setattr(extract, "ParserPool", ParserHere)
    yield world
    world.close()


def most(customer: Customer) -> int:
    """What all that they did can have cost, were nothing kept from one version to the next."""
    tokenizer = DigestModel().tokenizer
    tokens = sum(c.tokens for text in customer.inputs for c in chunk_text(text, tokenizer, max_tokens=CHUNK_TOKENS))
    versions = len(customer.inputs) + customer.reprocessed
    set_ups = 1 + len(customer.past)
    return tokens + versions * (PRICES.extract + PRICES.plan) + set_ups * PRICES.dataset_setup


def least(customer: Customer) -> int:
    """What is searchable was extracted and planned at least once."""
    return len(customer.texts) * (PRICES.extract + PRICES.plan) + (PRICES.dataset_setup if customer.texts else 0)


def wrong(town: Town, world: BusyWorld, customer: Customer) -> list[str]:
    """What is not as it should be, with everything at rest."""
    services, dataset, found = town.hands.services, customer.dataset, list[str]()
    for each in (dataset, *customer.past):
        found += [*truth.unfinished(world, each), *truth.drift(world, each, world.vectors(each))]
    found += [f"charged otherwise: {row}" for row in world.rows(_MISCHARGED, dataset.id)]
    books = Books.of(world, customer.payer)
    found += books.wrong(opening=0)
    if not least(customer) <= books.net <= most(customer):
        found.append(f"{books.net} credits, not {least(customer)} to {most(customer)}")
    audit = audit_ledger(services.fltr, services.ledger, overdue=timedelta(0))
    return found + [str(f) for f in audit.findings]


@pytest.mark.timeout(3_600 if LONG else 300)
@pytest.mark.parametrize("number", range(SCHEDULES))
def test_whatever_happens_in_between_all_ends_well(
    world: World, postgres: OwnServer, milvus: MilvusLite, tmp_path: Path, number: int
) -> None:
    print(f"FLTR_SEED={SEED}")
    town = Town(world, postgres, milvus, SEED + number, tmp_path)
    try:
        town.live(EVENTS)
        town.rest()
        all_is_well(town, world)
        for customer in town.customers:
            town.top_up(customer, 100_000)
        town.rest()
        all_is_well(town, world)
        for customer in town.customers:
            assert truth.searchable(town.hands.services, world, customer.dataset) == customer.texts
        assert runs.reconcile(town.hands).nothing, "the second time"
    finally:
        print("\n".join(town.told))
        town.close()


def all_is_well(town: Town, world: World) -> None:
    looking = BusyWorld(world.fltr_admin, world.auth_admin, world.milvus_uri, world.blobs)
    with closing(looking):
        for customer in town.customers:
            assert wrong(town, looking, customer) == []
            needed = looking.rows(_NEEDED, customer.dataset.id)
            balance = Books.of(looking, customer.payer).balance
            assert all(n > balance for (n,) in needed), f"they wait for {needed} credits, and {balance} are there"
