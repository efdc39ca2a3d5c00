"""A real Milvus server, standalone as in production, from the package `milvus`: for tests and benchmarks.

Belongs here: the process. Does not: clients of ours. It listens on every interface: Milvus 2.3 knows no other way.
"""

import http.client
import platform
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fltr_pipeline.embedded.processes import (
    HOME_VARIABLE,
    HOST,
    SERVICE_VARIABLE,
    ServiceSpec,
    end,
    find,
    plain_environment,
    spawn,
    wait_until_ready,
)

RUNS_HERE = (sys.platform, platform.machine()) == ("linux", "x86_64")
"""Whether there is such a package for this machine, as pyproject says too."""
NAME = "milvus-standalone"
TICK_MILLISECONDS = 200
"""Milvus' own default: a Strong read waits for the next tick."""
_PARTS = ("proxy", "rootCoord", "queryCoord", "dataCoord", "queryNode", "dataNode", "indexNode")


@contextmanager
def milvus_server(home: Path, *, tick_milliseconds: int = TICK_MILLISECONDS) -> Iterator[str]:
    """Its address. Program and data, half a GB at first, lie in a folder under `home` that goes when it ends."""
    with TemporaryDirectory(prefix=f"{NAME}-", dir=home) as folder:
        service, log = _spec(home, Path(folder), tick_milliseconds), home / f"{NAME}.log"
        process = spawn(service, log)
        try:
            wait_until_ready(service, process, log)
            yield service.address
        finally:
            end(lambda: find(home, NAME), politely=False)
            process.wait()


def _spec(home: Path, folder: Path, tick_milliseconds: int) -> ServiceSpec:
    """Unpacks and configures it; what it needs besides is in the environment."""
    import milvus

    keys = [key for key in milvus.MilvusServerConfig().configurable_items if key.endswith("_port")]
    health, etcd, etcd_peer, *ports = _free_ports(3 + len(keys))
    by_key = dict(zip(keys, ports, strict=True))
    config = milvus.MilvusServerConfig(data_dir=str(folder), **by_key)
    config.set("proxy.timeTickInterval", tick_milliseconds)
    for part in _PARTS:
        config.set(f"{part}.ip", HOST)
    config.resolve()
    milvus._initialize_data_files(str(folder))
    etcd_configuration = folder / "configs" / "etcd.yaml"
    etcd_configuration.write_text(_etcd_configuration(folder / "data" / "etcd", etcd, etcd_peer))
    return ServiceSpec(
        name=NAME,
        command=(str(folder / "bin" / "milvus"), "run", "standalone"),
        environment={
            **plain_environment(),
            HOME_VARIABLE: str(home),
            SERVICE_VARIABLE: NAME,
            "DEPLOY_MODE": "STANDALONE",
            "ETCD_CONFIG_PATH": str(etcd_configuration),
            "LD_LIBRARY_PATH": str(folder / "bin"),
            "METRICS_PORT": str(health),
            "MILVUS_RUN_DIR": str(folder / "run"),
        },
        cwd=folder,
        address=f"http://{HOST}:{by_key['proxy_port']}",
        ready=lambda _: _is_healthy(health),
    )


def _etcd_configuration(data: Path, port: int, peer_port: int) -> str:
    """Without one, the etcd inside would take the ports that every etcd takes."""
    client, peer = f"http://{HOST}:{port}", f"http://{HOST}:{peer_port}"
    return (
        f"data-dir: {data}\nlisten-client-urls: {client}\nadvertise-client-urls: {client}\n"
        f"listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\ninitial-cluster: default={peer}\n"
    )


def _free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to anybody who connects: Milvus takes them only seconds from now."""
    found: list[int] = []
    for port in random.sample(range(15_000, 32_000), 1_000):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} free ports")


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return b"OK" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
