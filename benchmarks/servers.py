"""PostgreSQL and Milvus Lite as the embedded stack runs them, without Dagster: nothing works beside what is measured.

Belongs here: starting and stopping them, and settings that name them and, in Milvus Lite's place, another Milvus.
Does not: data, timing, that other Milvus (the tests have one).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pydantic import SecretStr

from fltr_pipeline.embedded import milvus
from fltr_pipeline.embedded.postgres import Cluster
from fltr_pipeline.embedded.processes import end, find, free_port, spawn, wait_until_ready
from fltr_pipeline.pipeline.services import Services, open_services
from fltr_pipeline.settings import Settings
from fltr_pipeline.stores.schema import AUTH_ROLE, init_databases
from fltr_pipeline.stores.schema.connection import as_role


@contextmanager
def postgres(home: Path) -> Iterator[Cluster]:
    """A server with three empty databases."""
    cluster = Cluster(home)
    cluster.prepare()
    spec, log = cluster.spec(), home / "postgres.log"
    try:
        wait_until_ready(spec, spawn(spec, log), log)
        cluster.create_databases()
        yield cluster
    finally:
        cluster.stop()
        cluster.clean_up()


@contextmanager
def milvus_lite(home: Path) -> Iterator[str]:
    """Its address."""
    spec, log = milvus.spec(home, free_port()), home / "milvus.log"
    try:
        wait_until_ready(spec, spawn(spec, log), log)
        yield spec.address
    finally:
        end(lambda: find(home, milvus.NAME))


@contextmanager
def stores(home: Path, vectors: Callable[[Path], AbstractContextManager[str]] = milvus_lite) -> Iterator[Services]:
    """All five stores, fresh, under `home`; `vectors` starts the Milvus there and says its address."""
    with postgres(home) as cluster, vectors(home) as milvus_uri:
        auth = cluster.url("psycopg", "fltr_auth")
        init_databases(cluster.url("psycopg", "fltr"), auth)
        blobs = home / "blobs"
        blobs.mkdir()
        services = open_services(
            Settings(
                database_url=SecretStr(cluster.url("psycopg", "fltr")),
                auth_database_url=SecretStr(as_role(auth, AUTH_ROLE)),
                dagster_database_url=SecretStr(cluster.url("psycopg2", "dagster")),
                milvus_uri=milvus_uri,
                blob_url=str(blobs),
            )
        )
        yield services
        services.fltr.dispose()
        services.ledger.engine.dispose()
