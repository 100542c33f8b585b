"""The address of a Qdrant server, and asking it again when it cannot answer just now."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import grpc  # type: ignore[import-untyped]
import httpx
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from nexus_vdb.errors import ConfigError, StoreError, StoreNotFound, StoreUnavailable

__all__ = ["Address", "Retry", "Server"]

T = TypeVar("T")

_REST_PORT, _GRPC_PORT = 6333, 6334
_OPTIONS = {"grpc": 0, "hnsw": 0, "timeout": 60, "tries": 6}
_WRITE_IT_AS = "write it as qdrant://HOST:PORT/COLLECTION, or qdrants:// for TLS"

_BUSY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}


@dataclass(frozen=True, slots=True)
class Address:
    """What a store URL says.

    Attributes:
        url: As it was given.
        host: Name or number.
        port: Of the REST interface.
        prefix: Path before the collection, where a proxy has one.
        collection: Its name.
        tls: Whether the scheme is `qdrants`.
        grpc: Port of the gRPC interface, which is used then; 0 for REST. In a URL, 1 is 6334.
        hnsw: Edges per node of a graph over the hash, where the collection is made; 0 for none.
        timeout: Seconds until a request is given up.
        tries: How often a request is made at most.
    """

    url: str
    host: str
    port: int
    prefix: str
    collection: str
    tls: bool
    grpc: int
    hnsw: int
    timeout: int
    tries: int

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read `qdrant://HOST:PORT/COLLECTION?grpc=1&hnsw=16&timeout=60&tries=6`.

        Raises:
            ConfigError: it names no host or collection, or has an unknown option.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _REST_PORT
        except ValueError as error:
            raise ConfigError(f"{url!r} is not a URL: {error}", hint=_WRITE_IT_AS) from error
        prefix, _, collection = parts.path.rstrip("/").rpartition("/")
        if not parts.hostname or not collection:
            missing = "collection" if parts.hostname else "host"
            raise ConfigError(f"{url!r} names no {missing}", hint=_WRITE_IT_AS)
        options = _options(parts.query)
        options["grpc"] = _GRPC_PORT if options["grpc"] == 1 else options["grpc"]
        tls = parts.scheme == "qdrants"
        return cls(url, parts.hostname, port, prefix, unquote(collection), tls, **options)

    def connect(self) -> QdrantClient:
        """A client; nothing is sent yet. The key is taken from QDRANT_API_KEY."""
        return QdrantClient(
            host=self.host,
            port=self.port,
            prefix=self.prefix or None,
            https=self.tls,
            api_key=os.environ.get("QDRANT_API_KEY") or None,
            grpc_port=self.grpc or _GRPC_PORT,
            prefer_grpc=bool(self.grpc),
            timeout=self.timeout,
            check_compatibility=False,
        )


def _options(query: str) -> dict[str, int]:
    options = dict(_OPTIONS)
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in options:
            raise ConfigError(f"unknown option {name!r} in a URL; valid: {', '.join(_OPTIONS)}")
        least = min(_OPTIONS[name], 1)
        if not value.isdecimal() or int(value) < least:
            raise ConfigError(f"Invalid {name}={value!r} in a URL; valid: {least} or more")
        options[name] = int(value)
    return options


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to wait between tries: exponential backoff with jitter.

    Attributes:
        first: Seconds after the first try; doubled each time.
        most: Seconds at most.
    """

    first: float = 0.25
    most: float = 8.0

    def delays(self, tries: int) -> Iterator[float]:
        """One wait fewer than tries, each between half of its length and all of it."""
        for one in range(tries - 1):
            yield min(self.most, self.first * 2**one) * random.uniform(0.5, 1)  # noqa: S311


class Server:
    """A server that is asked again while it is down or busy.

    Args:
        address: Where it is.
        retry: Waits between tries.
    """

    def __init__(self, address: Address, retry: Retry) -> None:
        self.address = address
        self._retry = retry
        self._client: QdrantClient | None = address.connect()

    def ask(self, request: Callable[[QdrantClient], T]) -> T:
        """The answer to a request, which may be made several times.

        Raises:
            StoreUnavailable: no try reached the server, or it was too busy.
            StoreNotFound: there is no such collection.
            StoreError: it refused.
        """
        if self._client is None:
            raise StoreError(f"{self.address.url} is closed", hint="open it again")
        delays = self._retry.delays(self.address.tries)
        while True:
            try:
                return request(self._client)
            except Exception as error:
                fault = _fault(error, self.address)
                if fault is None:
                    raise
                delay = next(delays, None) if isinstance(fault, StoreUnavailable) else None
                if delay is None:
                    raise fault from error
                if isinstance(error, ResourceExhaustedResponse):
                    delay = max(delay, min(error.retry_after_s, self._retry.most))
            time.sleep(delay)

    def close(self) -> None:
        """Let go of the connections; a second call does nothing."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _fault(error: Exception, address: Address) -> StoreError | None:
    """The error as one of ours; None if it is not the server's."""
    if isinstance(error, ResponseHandlingException):
        if isinstance(error.source, httpx.TransportError):
            return _unavailable(str(error.source) or type(error.source).__name__, address)
        reason = str(error.source).partition("\n")[0]
        return StoreError(
            f"{address.url} gave an answer that cannot be read: {reason}",
            hint="see that a Qdrant server of version 1.16 or newer is there",
        )
    if isinstance(error, ResourceExhaustedResponse):
        return _unavailable(f"429 {error}", address)
    if isinstance(error, UnexpectedResponse):
        return _refusal(error.status_code or 0, _message(error), address)
    if isinstance(error, grpc.RpcError):
        if error.code() in _BUSY:
            return _unavailable(error.details(), address)
        missing = error.code() is grpc.StatusCode.NOT_FOUND
        return _refusal(404 if missing else 400, error.details(), address)
    return None


def _message(error: UnexpectedResponse) -> str:
    try:
        return str(json.loads(error.content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        text = error.content.decode("utf-8", "replace").strip()
        return text.partition("\n")[0][:200] or error.reason_phrase


def _refusal(status: int, message: str, address: Address) -> StoreError:
    if status == 429 or status >= 500:
        return _unavailable(f"{status} {message}", address)
    if status == 404:
        return StoreNotFound(
            f"nothing is stored at {address.url}: {message}", hint="ingest something first"
        )
    hint = "see the log of the server"
    if status in (401, 403):
        hint = "set QDRANT_API_KEY to a key that may read and write this collection"
    return StoreError(f"{address.url} refused ({status}): {message}", hint=hint)


def _unavailable(reason: str, address: Address) -> StoreUnavailable:
    where = f"{address.host}:{address.grpc or address.port}"
    return StoreUnavailable(
        f"no answer from the Qdrant server at {where}: {reason}",
        hint=f"see that it runs, and that host, port and TLS are right in {address.url}",
    )
