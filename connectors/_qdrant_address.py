"""The URL of a Qdrant collection: where the server is, and how the collection is made there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from qdrant_client import QdrantClient

from nexus_vdb.connectors._qdrant_options import Layout, parse_numbers, split_options
from nexus_vdb.errors import ConfigError

__all__ = ["Address"]

_REST_PORT, _GRPC_PORT = 6333, 6334
_WRITE_IT_AS = "write it as qdrant://HOST:PORT/COLLECTION, or qdrants:// for TLS"
_NUMBERS = {"grpc": 0, "timeout": 60, "patience": 180}
_POSITIVE = {"timeout"}


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
        timeout: Seconds until one request is given up.
        patience: Seconds for which a request is made again while the server is down or busy.
        layout: How the collection is made; an existing one only gets the indexes it lacks.
    """

    url: str
    host: str
    port: int
    prefix: str
    collection: str
    tls: bool
    grpc: int = 0
    timeout: int = 60
    patience: int = 180
    layout: Layout = field(default_factory=Layout)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read `qdrant://HOST:PORT/COLLECTION?grpc=1&timeout=60&patience=180&…`.

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
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        own, rest = split_options(given, _NUMBERS)
        layout = Layout.parse(rest, also_valid=tuple(_NUMBERS))
        numbers = parse_numbers(own, _NUMBERS, positive=_POSITIVE)
        return cls(
            url,
            host=parts.hostname,
            port=port,
            prefix=prefix,
            collection=unquote(collection),
            tls=parts.scheme == "qdrants",
            grpc=_GRPC_PORT if numbers["grpc"] == 1 else numbers["grpc"],
            timeout=numbers["timeout"],
            patience=numbers["patience"],
            layout=layout,
        )

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
