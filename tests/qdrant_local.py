"""The Qdrant client's own local mode: what Qdrant means, written down a second time.

The test server shares the translation of requests with the edge store (`_qdrant_edge`), so an error
in it would go unseen there; here nothing of it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from nexus_vdb.connectors._qdrant_address import Address


class LocalClient(QdrantClient):
    """In this process; outlives the stores that are opened on it."""

    def __init__(self) -> None:
        super().__init__(":memory:")

    def close(self, grpc_grace: float | None = None, **kwargs: Any) -> None:
        """Stay."""

    def get_collection(self, collection_name: str, **kwargs: Any) -> models.CollectionInfo:
        """As the server answers where there is none."""
        if not self.collection_exists(collection_name):
            raise UnexpectedResponse(404, "Not Found", b"no such collection", httpx.Headers())
        return super().get_collection(collection_name, **kwargs)

    def info(self) -> models.VersionInfo:
        """Local mode has none."""
        return models.VersionInfo(title="local", version="1.16.0")


@contextmanager
def local_mode() -> Iterator[str]:
    """A URL of which every client is the same one, in this process, as long as the `with` lasts."""
    client = LocalClient()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(Address, "connect", lambda address: client)
        # It says that it has no indexes and searches exactly.
        warnings.simplefilter("ignore", UserWarning)
        yield "qdrant://localhost/docs"
