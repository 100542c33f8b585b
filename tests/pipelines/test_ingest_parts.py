from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

import nexus_vdb as nx
from nexus_vdb.pipelines import _ingest_stages
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.types import QueryBatch


@pytest.mark.parametrize("fails", [False, True])
def test_parts_that_are_made_fast_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    class Encoder(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> QueryBatch:
            if fails and any("doc2999" in text for text in texts):
                raise nx.ModelError("no memory")
            return super().encode(texts)

    monkeypatch.setattr(_ingest_stages, "_HELD_SECONDS", 60.0)
    collection = nx.open("memory://", encoder=Encoder(64))
    path = tmp_path / "corpus.jsonl"
    rows = ({"id": f"doc{number}", "text": f"This is doc{number}."} for number in range(3000))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    seen: list[int] = []
    settings = IngestSettings(sources=[str(path)])
    with pytest.raises(nx.ModelError) if fails else nullcontext():
        ingest(collection, settings, progress=lambda report: seen.append(report.embedded))
    # What was made before the error is kept.
    assert collection.count == (2560 if fails else 3000)
    assert set(seen) == ({0} if fails else {0, 3000})
