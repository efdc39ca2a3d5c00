"""Milvus Lite as a server, so that several processes may use it (a `.db` path locks to one).

Belongs here: running it. Does not: collections (`stores.vectors`).
"""

import sys
from pathlib import Path

from fltr_pipeline.embedded import rpc
from fltr_pipeline.embedded.processes import HOME_VARIABLE, HOST, SERVICE_VARIABLE, ServiceSpec, plain_environment

NAME = "milvus"
ENVIRONMENT = {"MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": str(8 * 1024 * 1024)}
"""Rows leave Milvus Lite's write buffer early: a search goes through them there in Python, some 30 µs for each."""
GET_VERSION = "/milvus.proto.milvus.MilvusService/GetVersion"


def command(data: Path, port: int) -> tuple[str, ...]:
    """A server on the folder `data`. It takes one call at a time: with threads, rows are lost (docs/decisions/0029)."""
    server = (sys.executable, "-m", "milvus_lite", "server", "--max-workers", "1")
    return (*server, "--data-dir", str(data), "--host", HOST, "--port", str(port))


def spec(home: Path, port: int) -> ServiceSpec:
    """Milvus Lite on `port`, its data under `home/milvus`."""
    data = home / "milvus"
    data.mkdir(exist_ok=True)
    return ServiceSpec(
        name=NAME,
        command=command(data, port),
        environment={
            **plain_environment(),
            **ENVIRONMENT,
            HOME_VARIABLE: str(home),
            SERVICE_VARIABLE: NAME,
            "PYTHONUNBUFFERED": "1",
        },
        cwd=data,
        address=f"http://{HOST}:{port}",
        ready=lambda _: rpc.answers(port, GET_VERSION),
    )
