"""A changed document is replaced in one step: a search meanwhile finds one version of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import nexus_vdb as nx
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.pipelines import _ingest_stages
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.types import Records, StoreSchema

CHUNKS = {"grows": (2, 5), "shrinks": (6, 2), "stays": (3, 3), "to one": (4, 1), "from one": (1, 4)}


def write(folder: Path, version: int, chunks: dict[str, tuple[int, int]]) -> Path:
    path = folder / f"{version}.jsonl"
    rows = []
    for name, counts in chunks.items():
        parts = [f"Part {part} of {name} in version v{version}." for part in range(counts[version])]
        rows.append({"id": name, "text": " ".join(parts), "version": version})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def versions(found: Records, name: str) -> tuple[set[int], list[int]]:
    """Versions that the chunks of a document belong to, and the ordinals of the newest one."""
    rows = [row for row, one in enumerate(found.document_ids) if one == name]
    of = [found.metadata[row]["version"] for row in rows]
    newest = [int(found.ordinals[row]) for row, one in zip(rows, of, strict=True) if one == max(of)]
    return set(of), sorted(newest)


def check(found: Records, chunks: dict[str, tuple[int, int]]) -> None:
    """Every document is there, whole, in one version; what is left of the old one is surplus."""
    for name, counts in chunks.items():
        of, ordinals = versions(found, name)
        assert of, f"{name} is gone"
        assert ordinals == list(range(counts[max(of)])), f"{name} is there in part"
        surplus = found.ordinals[[one == name for one in found.document_ids]].max() + 1
        assert len(of) == 1 or surplus > counts[1]


class WatchedStore(MemoryStore):
    """Is looked at before and after each write."""

    look: Callable[[], None] = staticmethod(lambda: None)

    def upsert(self, records: Records) -> None:
        self.look()
        super().upsert(records)
        self.look()

    def delete(self, **options: Any) -> int:
        self.look()
        gone = super().delete(**options)
        self.look()
        return gone


class Collection(nx.Collection):
    def writable(self, schema: StoreSchema) -> WatchedStore:
        if self._store is None:
            self._store = WatchedStore.open(self.url, schema)
        assert isinstance(self._store, WatchedStore)
        return self._store


def run(collection: nx.Collection, path: Path) -> None:
    options = IngestSettings(sources=[str(path)], chunk_tokens=12, chunk_overlap=0, quarantine=None)
    ingest(collection, options)


def scan(collection: nx.Collection, names: Sequence[str]) -> Records:
    return collection.get(list(names))


def many(count: int) -> dict[str, tuple[int, int]]:
    kinds = list(CHUNKS.values())
    return {f"doc {number}": kinds[number % len(kinds)] for number in range(count)}


def test_at_every_write_each_document_is_there_in_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ingest_stages, "PART", 512)
    chunks = many(500)  # more than fit into one write
    collection = Collection("memory://", encoder=FakeEncoder(16))
    run(collection, write(tmp_path, 0, chunks))
    looks: list[set[int]] = []

    def look() -> None:
        found = scan(collection, list(chunks))
        check(found, chunks)
        looks.append({one["version"] for one in found.metadata})

    collection.writable(collection.store.info().schema).look = look
    run(collection, write(tmp_path, 1, chunks))
    assert len(looks) >= 6
    assert looks[0] == {0}
    assert {0, 1} in looks
    assert looks[-1] == {1}


def test_a_long_document_is_never_gone_nor_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ingest_stages, "PART", 8)
    monkeypatch.setattr(_ingest_stages, "_HELD", 16)
    chunks = {"short": (1, 1), "long": (60, 50), "held": (15, 12), "last": (2, 2)}
    collection = Collection("memory://", encoder=FakeEncoder(16))
    run(collection, write(tmp_path, 0, chunks))
    mixed = []

    def look() -> None:
        found = scan(collection, list(chunks))
        check(found, {name: counts for name, counts in chunks.items() if name != "long"})
        of, ordinals = versions(found, "long")
        head = [one for one in collection.get(["long"]).metadata][0]["version"]
        whole = ordinals == list(range(50))
        assert head == int(whole), "the first chunk is the last to be replaced"
        mixed.append(of == {0, 1} and not whole)

    collection.writable(collection.store.info().schema).look = look
    run(collection, write(tmp_path, 1, chunks))
    assert any(mixed)


def readings(url: str, names: Sequence[str], stop: threading.Event) -> Iterator[Records]:
    while not stop.is_set():
        with nx.open(url) as reader:
            yield reader.get(list(names))


def test_a_reader_of_a_folder_sees_one_version_at_any_time(tmp_path: Path) -> None:
    chunks = many(900)
    url = f"faiss://{tmp_path}/index"
    paths = [write(tmp_path, version, chunks) for version in (0, 1)]
    with nx.open(url, encoder=FakeEncoder(16)) as collection:
        run(collection, paths[0])
    stop = threading.Event()
    seen: list[set[int]] = []
    faults: list[BaseException] = []

    def read() -> None:
        try:
            for found in readings(url, list(chunks), stop):
                check(found, chunks)
                seen.append({one["version"] for one in found.metadata})
        except BaseException as error:  # shown by the test
            faults.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with nx.open(url, encoder=FakeEncoder(16)) as collection:
            run(collection, paths[1])
    finally:
        stop.set()
        reader.join()
    assert faults == []
    assert seen
    with nx.open(url) as collection:
        check(scan(collection, list(chunks)), chunks)
        assert collection.count == sum(counts[1] for counts in chunks.values())
