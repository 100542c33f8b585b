from __future__ import annotations

import pytest

from nexus_vdb.pipelines import _ingest_stages


@pytest.fixture(autouse=True)
def _parts_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is a write of its own, so that the tests know what is written when."""
    monkeypatch.setattr(_ingest_stages, "_HELD_SECONDS", 0.0)
