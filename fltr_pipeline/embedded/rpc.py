"""Is it there? One question over gRPC or HTTP, without importing the client library of what is asked.

Belongs here: readiness probes' transport. Does not: any client that does work.
"""

import http.client
import json
from typing import Any

import grpc

from fltr_pipeline.embedded.processes import HOST

PROBE_SECONDS = 5.0


def answers(port: int, method: str) -> bool:
    """Whether a gRPC server on `port` answers `method`, given an empty request."""
    with grpc.insecure_channel(f"{HOST}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=PROBE_SECONDS)
        except grpc.RpcError:
            return False
        return True


def get(port: int, path: str) -> bool:
    """Whether `GET path` is answered with 200."""
    return _request(port, "GET", path, None) is not None


def graphql(port: int, query: str) -> dict[str, Any] | None:
    """The `data` of a GraphQL query to the Dagster webserver, or None when it does not answer yet."""
    body = _request(port, "POST", "/graphql", json.dumps({"query": query}))
    return None if body is None else json.loads(body).get("data")


def _request(port: int, method: str, path: str, body: str | None) -> bytes | None:
    connection = http.client.HTTPConnection(HOST, port, timeout=PROBE_SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.read() if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
