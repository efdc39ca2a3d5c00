"""A real Milvus Lite server as a process, for tests: started, killed, started again.

Belongs here: the process. Does not: clients of ours.
"""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from fltr_pipeline.embedded.milvus import ENVIRONMENT, command

STARTUP_SECONDS = 60.0


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MilvusLite:
    """A server on a folder. Restarted, it keeps its port and its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server and wait until it answers a call."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder.parent / f"{self._folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command(self._folder, self._port),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | ENVIRONMENT,
            )
        self._wait_for_answer()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server: politely, or with SIGKILL as a crash would."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=STARTUP_SECONDS)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _wait_for_answer(self) -> None:
        import grpc
        from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

        deadline = time.monotonic() + STARTUP_SECONDS
        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            stub = milvus_pb2_grpc.MilvusServiceStub(channel)
            try:
                stub.GetVersion(
                    milvus_pb2.GetVersionRequest(), wait_for_ready=True, timeout=deadline - time.monotonic()
                )
            except grpc.RpcError:
                self.stop(signal.SIGKILL)
                raise
