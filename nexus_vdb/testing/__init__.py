"""For the tests of this project and of third-party connectors; the stores' contract needs pytest.

    from nexus_vdb.testing.store import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store_url(self, tmp_path: Path) -> str:
            return f"mine://{tmp_path / 'store'}"

`FakeEncoder` stands for a model; `nexus_vdb.testing.samples` has records, queries and filters.
"""

from __future__ import annotations

from nexus_vdb.testing.encoder import FakeEncoder

__all__ = ["FakeEncoder"]
