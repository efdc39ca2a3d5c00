"""The embedded PostgreSQL: what a kill leaves behind never forbids the next start."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fltr_pipeline.embedded import processes
from fltr_pipeline.embedded.postgres import SOCKET, Cluster
from fltr_pipeline.errors import StackError
from fltr_pipeline_tests.integration.test_embedded_stack import kill


@pytest.fixture
def cluster(short_tmp: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    home = short_tmp / f"pg-{abs(hash(request.node.name)) % 10**6}"
    home.mkdir()
    cluster = Cluster(home)
    yield cluster
    cluster.stop()


def start(cluster: Cluster) -> None:
    cluster.stop()
    cluster.prepare()
    log = cluster.home / "postgres.log"
    child = processes.spawn(cluster.spec(), log)
    processes.wait_until_ready(cluster.spec(), child, log)
    child.returncode = 0  # the cluster is stopped without this handle


def test_a_killed_initdb_is_done_again(cluster: Cluster) -> None:
    half = cluster.data.with_name("data.new")
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    start(cluster)
    assert not half.exists()


def test_lock_files_that_name_a_living_stranger_don_t_forbid_the_start(cluster: Cluster) -> None:
    start(cluster)
    cluster.create_databases()
    cluster.create_databases()
    locks = (cluster.data / "postmaster.pid", cluster.socket_folder / f"{SOCKET}.lock")
    stale = [lock.read_bytes() for lock in locks]
    kill(cluster.members())
    processes.wait_gone(cluster.members(), processes.SIGKILL_SECONDS)
    for lock, content in zip(locks, stale, strict=True):
        lock.write_bytes(content.replace(content.split()[0], str(os.getpid()).encode(), 1))
    start(cluster)


def test_a_socket_folder_of_another_user_is_refused(short_tmp: Path) -> None:
    cluster = Cluster(short_tmp / ("x" * 120))
    cluster.home.mkdir()
    cluster.socket_folder.symlink_to(short_tmp)
    try:
        with pytest.raises(StackError, match="another user"):
            cluster.prepare()
    finally:
        cluster.socket_folder.unlink()


def test_urls_survive_awkward_paths() -> None:
    from sqlalchemy import make_url

    cluster = Cluster(Path("/tmp/a b&c=d?e"))
    url = make_url(cluster.url("psycopg", "fltr"))
    assert (url.drivername, url.username, url.database) == ("postgresql+psycopg", "postgres", "fltr")
    assert url.query["host"] == "/tmp/a b&c=d?e/postgres"
