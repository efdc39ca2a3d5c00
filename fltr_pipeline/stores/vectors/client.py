"""The one spot that talks to pymilvus: it connects late, gives every call a deadline and translates every failure.

Belongs here: what is true of any call. Does not: which calls make up a vector store.
pymilvus has no types: `Any` ends at this package's border.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from fltr_pipeline.errors import (
    ConfigurationError,
    FltrError,
    InvalidValue,
    SchemaDrift,
    StoreUnavailable,
    UnsupportedCapability,
)

T = TypeVar("T")

CONNECT_SECONDS = 10.0

_SCHEMES = {"http", "https", "tcp", "unix"}

# Codes of Milvus' own errors; 6 is Milvus Lite's word for an illegal argument.
_CONNECT_FAILED = 2
_COLLECTION_NOT_FOUND = 100
_NOT_LOADED = {101, 103}
_NOT_ALLOWED = {1400, 1401}
_INVALID = {6, *range(1100, 1200)}

_BY_STATUS: dict[str, type[FltrError]] = {
    "UNAUTHENTICATED": ConfigurationError,
    "PERMISSION_DENIED": ConfigurationError,
    "UNIMPLEMENTED": UnsupportedCapability,
    "INVALID_ARGUMENT": InvalidValue,
}


class _Released(StoreUnavailable):
    """The collection is not in memory. A Milvus Lite server comes back from a restart with all of them like that."""


@dataclass(frozen=True)
class MilvusServer:
    """A Milvus server, connected at the first call.

    Raises:
        ConfigurationError: the address is none that a server can have.
    """

    uri: str = field(repr=False)
    token: SecretStr | None
    timeout: float
    """Seconds per call."""

    def __post_init__(self) -> None:
        _ = self._parts  # checks the address
        if self.timeout <= 0:
            raise ConfigurationError(f"the timeout for Milvus must be above 0 s, not {self.timeout}")

    @property
    def address(self) -> str:
        """The URI without the credentials that it may hold."""
        return self._parts._replace(netloc=self._parts.netloc.rpartition("@")[2]).geturl()

    @cached_property
    def version(self) -> str:
        """The version as the server words it: `v2.3.5`, `milvus_lite-3.2.2`."""
        return str(self.guard("get_server_version", lambda: self._client.get_server_version(timeout=self.timeout)))

    def call(self, method: str, collection: str, **arguments: Any) -> Any:  # noqa: ANN401
        """Call a method of `MilvusClient` on a collection; one that the server has released is loaded and asked again.

        Raises:
            StoreUnavailable: the server does not answer, is overloaded, or fails.
            SchemaDrift: there is no such collection.
            InvalidValue: the server refuses an argument.
            ConfigurationError: the server refuses our credentials.
            UnsupportedCapability: the server does not know the call.
        """

        def send() -> Any:  # noqa: ANN401
            return getattr(self._client, method)(collection, timeout=self.timeout, **arguments)

        try:
            return self.guard(method, send)
        except _Released:
            self.load(collection)
            return self.guard(method, send)

    def load(self, collection: str) -> None:
        """Bring a collection into the server's memory; does nothing if it is there. Raises as `call` does."""
        self.guard("load_collection", lambda: self._client.load_collection(collection, timeout=self.timeout))

    def guard(self, what: str, send: Callable[[], T]) -> T:
        """Run `send` and translate its failures, as `call` does."""
        import grpc  # noqa: PLC0415
        from pymilvus.exceptions import MilvusException  # noqa: PLC0415

        try:
            return send()
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, OSError, ValueError) as error:
            self._translate(what, error)

    @cached_property
    def _parts(self) -> SplitResult:
        """A password with a `/` of its own would end up in the path, and so in messages."""
        try:
            parts = urlsplit(self.uri)
            _ = parts.port
        except ValueError:
            parts = None
        if parts is None or parts.scheme not in _SCHEMES or "@" in f"{parts.path}{parts.query}{parts.fragment}":
            raise ConfigurationError(  # it may hold a password, in the wrong place: not repeated
                "FLTR_MILVUS_URI must be a server's address such as http://milvus:19530 (a Milvus Lite file can be "
                "opened by one process only); a token, or user:password, belongs in FLTR_MILVUS_TOKEN"
            )
        return parts

    @cached_property
    def _client(self) -> Any:  # noqa: ANN401
        from pymilvus import MilvusClient  # noqa: PLC0415

        # Every failure becomes an error of ours; pymilvus would print each one with a traceback of its own besides.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        token = self.token.get_secret_value() if self.token else ""
        # With gRPC's shared pool, a server that comes back stays unreachable for this process for up to two minutes.
        options = {"grpc.use_local_subchannel_pool": 1}
        timeout = min(self.timeout, CONNECT_SECONDS)
        return MilvusClient(uri=self.uri, token=token, timeout=timeout, grpc_options=options)

    def _translate(self, what: str, error: Exception) -> NoReturn:
        # `from None`: the original error may quote the URI or the token, and what it says is in ours.
        if isinstance(error, FltrError):
            raise error
        kind = _kind(error)
        hint = {
            StoreUnavailable: "is the server up?",
            SchemaDrift: "make it with `fltr-pipeline db init`",
            ConfigurationError: "check FLTR_MILVUS_TOKEN",
        }.get(kind, "")
        message = f"Milvus at {self.address}: {what} failed: {self._scrubbed(error)}"
        raise kind(f"{message} ({hint})" if hint else message) from None

    def _scrubbed(self, error: Exception) -> str:
        text = str(getattr(error, "message", "") or error)
        # A user without a password is a token.
        in_uri = self._parts.password or self._parts.username
        secrets = [self.token.get_secret_value() if self.token else None, in_uri]
        for secret in filter(None, secrets):
            text = text.replace(secret, "***")
        return text


def _kind(error: BaseException) -> type[FltrError]:
    from pymilvus.exceptions import ParamError  # noqa: PLC0415

    code = getattr(error, "code", None)
    status = _grpc_status(code)
    if code == _CONNECT_FAILED and error.__context__ is not None:
        status = _grpc_status(getattr(error.__context__, "code", None))
    if status is not None:
        return _BY_STATUS.get(status, StoreUnavailable)
    if code in _NOT_LOADED:
        return _Released
    if code == _COLLECTION_NOT_FOUND:
        return SchemaDrift
    if code in _NOT_ALLOWED:
        return ConfigurationError
    if code in _INVALID or isinstance(error, ParamError):
        return InvalidValue
    return StoreUnavailable  # unknown: tried again, with growing waits


def _grpc_status(code: object) -> str | None:
    """The name of a gRPC status, from a gRPC error's `code` method or from what pymilvus passes as its own code."""
    import grpc  # noqa: PLC0415

    status = code() if callable(code) else code
    return str(status.name) if isinstance(status, grpc.StatusCode) else None
