from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

import nexus_vdb as nx
from nexus_vdb.pipelines import _ingest_stages
from nexus_vdb.pipelines._ingest_parts import Pending, packed
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.types import Chunk, QueryBatch


def chunk(document: str, ordinal: int, characters: int) -> Chunk:
    return Chunk(f"{document}#{ordinal}", document, ordinal, "x" * characters, 0, characters)


def parts_of(*documents: list[int], size: int) -> list[list[tuple[str, int]]]:
    """What `packed` makes of documents with chunks of so many characters."""
    pending = []
    for number, lengths in enumerate(documents):
        one = Pending(nx.Document(f"doc{number}", ""), "digest", {})
        chunks = [chunk(one.document.id, place, length) for place, length in enumerate(lengths)]
        pending.append((one, chunks))
    return [
        [(one.document_id, one.ordinal) for one in part.chunks] for part in packed(pending, size)
    ]


def test_a_part_holds_many_short_texts_or_few_long_ones() -> None:
    short, long = [30], [1024]
    assert [len(part) for part in parts_of(*[short] * 20, size=8)] == [8, 8, 4]
    assert [len(part) for part in parts_of(*[long] * 5, size=8)] == [2, 2, 1]
    assert [len(part) for part in parts_of(long, short, short, short, short, size=8)] == [5]
    assert [len(part) for part in parts_of([5000], short, size=8)] == [1, 1]


def test_a_document_of_many_parts_is_cut_by_its_work_and_ends_with_its_first_chunk() -> None:
    parts = parts_of([30], [1024, 1024, 30, 30, 5000, 30], size=8)
    assert parts == [
        [("doc0", 0)],
        [("doc1", 1), ("doc1", 2), ("doc1", 3)],
        [("doc1", 4)],
        [("doc1", 5), ("doc1", 0)],
    ]


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
    assert collection.count == (2048 if fails else 3000)
    assert set(seen) == ({0} if fails else {0, 3000})
