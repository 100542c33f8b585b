"""For the tests of this project and of third-party connectors; needs pytest.

from nexus_vdb.testing.store import StoreContract

class TestMyStore(StoreContract):
    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        return f"mine://{tmp_path / 'store'}"
"""

from __future__ import annotations

from nexus_vdb.testing.encoder import FakeEncoder

__all__ = ["FakeEncoder"]
