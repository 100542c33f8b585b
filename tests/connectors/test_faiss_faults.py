"""What a store meets outside: writers beside readers, full disks, folders that are read only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.errors import StoreCorrupt, StoreError
from nexus_vdb.filters import parse_filter
from nexus_vdb.testing.compare import Pair, assert_same_records, scan_all
from nexus_vdb.testing.store import sample_id, sample_queries, sample_records
from nexus_vdb.types import SearchPlan, StoreSchema

SCHEMA = StoreSchema(dim=96, cuts=(32, 96))
EXACT = SearchPlan(k=100, candidates="exact", cuts=(96,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def make(folder: Path, n: int = 60) -> FaissStore:
    store = FaissStore.open(f"faiss://{folder}", SCHEMA)
    store.upsert(sample_records(n, dim=96))
    return store


# A writer beside a reader

_WRITE = """
import sys
from dataclasses import replace
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.testing.store import sample_records

store = FaissStore.open(sys.argv[1])
records = sample_records(40, dim=96)
for turn in range(1, int(sys.argv[2]) + 1):
    store.upsert(replace(records, texts=[str(turn)] * 40, metadata=[{"turn": turn}] * 40))
    if turn % 7 == 0:
        store.optimize()
"""


def test_a_reader_sees_one_state_after_the_other_and_never_half_of_one(folder: Path) -> None:
    turns = 60
    records = sample_records(40, dim=96)
    start = replace(records, texts=["0"] * 40, metadata=[{"turn": 0}] * 40)
    store = FaissStore.open(f"faiss://{folder}", SCHEMA)
    store.upsert(start)
    store.close()
    reader, queries, seen = FaissStore.open(f"faiss://{folder}"), sample_queries(2, dim=96), [0]
    command = [sys.executable, "-c", _WRITE, f"faiss://{folder}", str(turns)]
    with subprocess.Popen(command) as writer:
        while seen[-1] < turns and (writer.poll() is None or seen[-1] < turns):
            texts = set(reader.get(records.ids).texts)
            hits = reader.search(queries, EXACT)
            turn = hits[0][0].metadata["turn"]
            listed = [text for batch in reader.scan(7) for text in batch.texts]
            assert len(texts) == 1
            assert [len(one) for one in hits] == [40, 40]
            assert {hit.text for one in hits for hit in one} == {str(turn)}
            assert len(listed) == 40
            assert len(set(listed)) == 1
            assert reader.count() == 40
            assert reader.count(parse_filter({"turn": {"$gte": turn}})) == 40
            assert seen[-1] <= int(min(texts)) <= turn <= int(listed[0])
            seen.append(turn)
    assert writer.returncode == 0
    assert len(set(seen)) > 5
    assert FaissStore.check(f"faiss://{folder}") == []


# Disks and folders that refuse

_FILL = """
import json, resource, sys
from dataclasses import replace
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.errors import StoreError
from nexus_vdb.testing.store import sample_records

url, found = sys.argv[1], []
store = FaissStore.open(url)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)


def attempt(limit, write):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        write()
        error = ""
    except StoreError as refused:
        error = str(refused)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    if error:
        there = FaissStore.open(url)
        found.append((error, store.count(), there.count(), len(FaissStore.check(url))))
    return error


records = sample_records(50, seed=1, dim=96)
short = replace(records, texts=[""] * 50, metadata=[{}] * 50)
for limit in (16, 1000, 4000, 8000, 8500, 9000, 9500):
    attempt(limit, lambda: store.upsert(short))
    store.delete(ids=short.ids)
for limit in (16, 400):
    attempt(limit, lambda: store.delete(ids=sample_records(9, dim=96).ids))
    attempt(limit, lambda: store.set_meta("a", "b" * 100))
attempt(2000, store.optimize)
store.upsert(records)
print(json.dumps([found, store.count()]))
"""


def test_a_full_disk_is_named_and_loses_nothing(folder: Path) -> None:
    store = make(folder)
    store.upsert(sample_records(10, seed=2, dim=96))
    store.close()
    command = [sys.executable, "-c", _FILL, f"faiss://{folder}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found, count = json.loads(done.stdout)
    assert count == 120
    files = set()
    for error, held, there, damaged in found:
        assert error.startswith(f"cannot write {folder}/")
        assert error.endswith("File too large")
        assert (held, there, damaged) == (70, 70, 0)
        files.add(error.partition(":")[0].rpartition("/")[2].partition("-")[0])
    assert {"rows.arrow", "vectors.f16", "dead", "meta", "manifest.json.tmp"} <= files
    names = [path.name for path in (folder / "segments").iterdir()]
    assert len(names) == FaissStore.open(f"faiss://{folder}").info().details["segments"]


_READ_ONLY = """
import json, os, sys
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.errors import StoreError
from nexus_vdb.testing.store import sample_queries, sample_records
from nexus_vdb.types import SearchPlan, StoreSchema

url = sys.argv[1]
plan = SearchPlan(candidates="exact", cuts=(96,))
FaissStore.open(url).search(sample_queries(1, dim=96), plan)  # imports what is imported late
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
store, errors = FaissStore.open(url), []
for write in (
    lambda: store.upsert(sample_records(5, seed=1, dim=96)),
    lambda: store.delete(ids=sample_records(5, dim=96).ids),
    lambda: store.set_meta("a", 1),
    store.optimize,
    lambda: FaissStore.open(url + "/new", StoreSchema(dim=96, cuts=(96,))),
):
    try:
        write()
    except StoreError as error:
        errors.append(str(error))
hits = store.search(sample_queries(1, dim=96), plan)[0]
print(json.dumps([errors, store.count(), len(hits), len(FaissStore.check(url))]))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_can_be_read(open_folder: Path) -> None:
    folder = open_folder / "index"
    make(folder).close()
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    command = [sys.executable, "-c", _READ_ONLY, f"faiss://{folder}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    errors, *answers = json.loads(done.stdout)
    refused = f"cannot write {folder}/lock: Permission denied"
    assert errors == [refused] * 4 + [f"cannot write {folder}/new: Permission denied"]
    assert answers == [60, 10, 0]


# Merging, and stores of older formats


def test_merging_does_not_hide_damage(folder: Path) -> None:
    store = make(folder)
    store.upsert(sample_records(60, seed=1, dim=96))
    before = scan_all(store)
    path = folder / "segments" / "00000003" / "vectors.f16"
    content = path.read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        again = FaissStore.open(f"faiss://{folder}")
        store.close()
        with pytest.raises(StoreCorrupt, match=r"00000003/vectors\.f16"):
            again.optimize()
        assert again.count() == 120
        again.close()
        path.write_bytes(content)
        store = FaissStore.open(f"faiss://{folder}")
    store.optimize()
    assert store.info().details["segments"] == 1
    ids = sorted(before.ids)
    assert_same_records(store.get(ids), Pair(store, _memory(folder)).reference.get(ids))


def _memory(folder: Path) -> MemoryStore:
    reference = MemoryStore.open("memory://", SCHEMA)
    for batch in FaissStore.open(f"faiss://{folder}").scan():
        reference.upsert(batch)
    return reference


def _as_format(folder: Path, number: int) -> None:
    """What older versions wrote: no checksums, neither in files nor in names."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    del value["checksum"]
    (folder / "manifest.bak").unlink()
    for entry in value["segments"]:
        segment = folder / "segments" / entry["name"]
        (segment / entry.pop("sums")).unlink()
        if entry["dead"]:
            plain = entry["dead"].rpartition("-")[0] + ".u32"
            (segment / entry["dead"]).rename(segment / plain)
            entry["dead"] = plain
        if number == 1:
            del entry["codes"], entry["lists"]
    plain = value["meta"].rpartition("-")[0] + ".json"
    (folder / value["meta"]).rename(folder / plain)
    path.write_text(json.dumps(value | {"format": number, "meta": plain}, indent=1))


@pytest.mark.parametrize("number", [1, 2])
def test_stores_of_older_formats_are_read_and_written_on(folder: Path, number: int) -> None:
    store = make(folder)
    store.delete(ids=[sample_id(3)])
    store.set_meta("a", 1)
    before, hits = scan_all(store), store.search(sample_queries(2, dim=96), EXACT)
    store.close()
    _as_format(folder, number)
    store = FaissStore.open(f"faiss://{folder}")
    assert_same_records(scan_all(store), before)
    assert store.search(sample_queries(2, dim=96), EXACT) == hits
    assert store.info().meta == {"a": 1}
    assert FaissStore.check(f"faiss://{folder}") == []
    assert scan_all(FaissStore.open(f"faiss://{folder}?rescue")).ids == before.ids
    store.upsert(sample_records(10, seed=1, dim=96))
    assert json.loads((folder / "manifest.json").read_text())["format"] == 3
    assert store.count() == FaissStore.open(f"faiss://{folder}").count() == 69
    store.optimize()
    assert all((folder / "segments" / "00000006").glob("sums-*.bin"))
    assert_same_records(store.get(before.ids), before)


def test_damage_of_a_store_without_checksums_crashes_nothing(folder: Path) -> None:
    store = make(folder)
    store.set_meta("a", 1)
    store.close()
    _as_format(folder, 2)
    random = np.random.default_rng(0)
    for path in sorted((folder / "segments").rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        for _ in range(40 * bool(content)):
            changed = bytearray(content)
            for place in random.integers(len(content), size=3):
                changed[place] = random.integers(256)
            path.write_bytes(changed)
            try:
                there = FaissStore.open(f"faiss://{folder}")
                scan_all(there)
                there.get([sample_id(row) for row in range(9)])
                there.search(sample_queries(1, dim=96), EXACT)
                there.count(parse_filter({"lang": "en"}))
            except (StoreCorrupt, AssertionError):
                pass  # an assertion of the comparison: a changed value
        if content:
            path.write_bytes(content)


def test_another_format_says_what_to_do(folder: Path) -> None:
    make(folder).close()
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    for url in (f"faiss://{folder}", f"faiss://{folder}?rescue"):
        with pytest.raises(StoreError, match="has format 99, this version reads") as caught:
            FaissStore.open(url)
        assert "use the version of nexus-vdb that wrote it" in caught.value.hint
