from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus_vdb.testing.store import StoreContract
from tests.qdrant_server import QdrantServer


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with tempfile.TemporaryDirectory() as folder, QdrantServer(Path(folder)) as server:
        yield server


class TestQdrantStore(StoreContract):
    @pytest.fixture
    def store_url(self, server: QdrantServer) -> str:
        return server.url("docs")
