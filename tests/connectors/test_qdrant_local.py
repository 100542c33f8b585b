from __future__ import annotations

from collections.abc import Iterator

import pytest

from nexus_vdb.testing.store import StoreContract
from tests.qdrant_local import local_mode


class TestQdrantStoreOnLocalMode(StoreContract):
    @pytest.fixture
    def store_url(self) -> Iterator[str]:
        with local_mode() as url:
            yield url
