from __future__ import annotations

from pathlib import Path

import pytest

from nexus_vdb.testing.store import StoreContract


class TestQdrantEdgeStore(StoreContract):
    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        return f"qdrant-edge://{tmp_path / 'store'}"
