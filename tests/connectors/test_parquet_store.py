from __future__ import annotations

from pathlib import Path

import pytest

from nexus_vdb.testing.store import StoreContract


class TestParquetStore(StoreContract):
    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        return f"parquet://{tmp_path}/export"
