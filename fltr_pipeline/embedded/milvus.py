"""Milvus Lite as a server, so that several processes may use it (a `.db` path locks to one).

Belongs here: running it. Does not: collections (`stores.vectors`).
"""

import sys
from pathlib import Path

from fltr_pipeline.embedded import rpc
from fltr_pipeline.embedded.processes import HOME_VARIABLE, HOST, SERVICE_VARIABLE, ServiceSpec, plain_environment

NAME = "milvus"
MEMTABLE_BYTES = 8 * 1024 * 1024
"""Rows leave Milvus Lite's write buffer early: a search goes through them there in Python, some 30 µs for each."""
GET_VERSION = "/milvus.proto.milvus.MilvusService/GetVersion"


def spec(home: Path, port: int) -> ServiceSpec:
    """Milvus Lite on `port`, its data under `home/milvus`."""
    data = home / "milvus"
    data.mkdir(exist_ok=True)
    command = (sys.executable, "-m", "milvus_lite", "server")
    return ServiceSpec(
        name=NAME,
        command=(*command, "--data-dir", str(data), "--host", HOST, "--port", str(port)),
        environment={
            **plain_environment(),
            HOME_VARIABLE: str(home),
            SERVICE_VARIABLE: NAME,
            "PYTHONUNBUFFERED": "1",
            "MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": str(MEMTABLE_BYTES),
        },
        cwd=data,
        address=f"http://{HOST}:{port}",
        ready=lambda _: rpc.answers(port, GET_VERSION),
    )
