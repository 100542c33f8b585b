"""Each file of a real store is damaged in turn: right answers, or an error naming the file."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexus_vdb.connectors import _faiss_write
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.errors import StoreCorrupt, StoreError
from nexus_vdb.filters import parse_filter
from nexus_vdb.testing.compare import assert_same_records, scan_all, select
from nexus_vdb.testing.store import sample_id, sample_queries, sample_records
from nexus_vdb.types import Records, SearchPlan, StoreSchema

SCHEMA = StoreSchema(dim=96, cuts=(32, 96))
EXACT = SearchPlan(k=10, candidates="exact", cuts=(96,))
BY_HASH = SearchPlan(k=10, candidates=100, cuts=(32, 96))
NARROW = SearchPlan(k=10, candidates=300, cuts=(32, 96), probes=0.5)
QUERIES = sample_queries(3, dim=96)
WHERE = parse_filter({"lang": "en", "year": {"$gte": 2005}})


def _make(folder: Path) -> None:
    """A large segment with lists, dead rows and newer codes, and two small ones; and settings."""
    store = FaissStore.open(f"faiss://{folder}", SCHEMA)
    store.upsert(sample_records(400, dim=96))
    store.upsert(sample_records(30, seed=1, dim=96))
    store.delete(ids=[sample_id(row) for row in range(0, 90, 3)])
    store.recode(lambda vectors: (vectors[:, :64] > 0).astype("u8") @ (1 << _BITS))
    store.upsert(sample_records(20, seed=2, dim=96))
    store.set_meta("hash", "itq")
    store.close()


_BITS = np.arange(64, dtype=np.uint64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("damage") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_faiss_write, "LISTED", 300)
        patch.setattr(_faiss_write, "SIGNED", 300)
        _make(folder)
    yield folder
    shutil.rmtree(folder)


ANSWERS: dict[str, Callable[[FaissStore], Any]] = {
    "scan": scan_all,
    "get": lambda store: store.get([sample_id(1), sample_id(700), sample_id(9, 1)]),
    "fingerprints": lambda store: store.fingerprints(["doc/0/5", "doc/0/400", "doc/2/3"]),
    "exact": lambda store: store.search(QUERIES, EXACT),
    "by hash": lambda store: store.search(QUERIES, BY_HASH),
    "by lists": lambda store: store.search(QUERIES, NARROW),
    "filtered": lambda store: store.search(QUERIES, BY_HASH, WHERE),
    "count": lambda store: store.count(WHERE),
    "documents": lambda store: list(store.document_ids()),
    "tables": lambda store: list(store.scan_tables()),
    "meta": lambda store: store.info().meta,
}


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, Records):
        assert_same_records(found, expected)
        return True
    return bool(found == expected)


def _flip(content: bytes, places: list[int]) -> bytes:
    changed = bytearray(content)
    for place in places:
        changed[place] ^= 0x41
    return bytes(changed)


def _damages(content: bytes) -> dict[str, bytes | None]:
    n, chance = len(content), random.Random(len(content))
    found: dict[str, bytes | None] = {
        "missing": None,
        "a byte less": content[:-1],
        "a byte more": content + b"\0",
        "zeros": bytes(n),
    }
    for name, place in {"first": 0, "middle": n // 2, "last": n - 1}.items():
        found[f"{name} byte"] = _flip(content, [place])
    for turn in range(2):
        found[f"some byte {turn}"] = _flip(content, [chance.randrange(n)])
    return found


def _check_answers(folder: Path, expected: dict[str, Any], name: str) -> int:
    """How many of the answers were an error, all of which name the file; the others are right."""
    wrong = 0
    try:
        store = FaissStore.open(f"faiss://{folder}")
    except StoreCorrupt as error:
        assert name in str(error)
        assert "?rescue" in error.hint
        return len(expected)
    for what, answer in expected.items():
        try:
            assert _same(ANSWERS[what](store), answer), what
        except StoreCorrupt as error:
            assert name in str(error), what
            wrong += 1
    store.close()
    return wrong


def _check_rescue(folder: Path, records: Records) -> int:
    """How many records cannot be rescued; the others are right."""
    store = FaissStore.open(f"faiss://{folder}?rescue")
    found, details = scan_all(store), store.info().details
    by_id = {one: row for row, one in enumerate(records.ids)}
    kept = [one for one in found.ids if one in by_id]
    expected, kept_records = select(records, kept), select(found, kept)
    if any("the hash is lost" in line for line in details["damage"]):
        assert "hash" not in store.info().meta
        expected = replace(expected, codes=kept_records.codes)
    assert_same_records(kept_records, expected)
    assert len(kept) + details["lost"] == len(records)
    assert bool(details["damage"]) or details["lost"] == 0
    if len(found) > len(kept):  # it is unknown which records were deleted
        assert any("deleted may be back" in line for line in details["damage"])
    with pytest.raises(StoreError, match="read only"):
        store.upsert(records)
    return int(details["lost"])


def test_every_file_damaged_in_every_way(whole: Path, tmp_path: Path) -> None:
    store = FaissStore.open(f"faiss://{whole}")
    expected = {what: ask(store) for what, ask in ANSWERS.items()}
    records = expected["scan"]
    assert FaissStore.check(f"faiss://{whole}") == []
    names = sorted(
        str(path.relative_to(whole))
        for path in whole.rglob("*")
        if path.is_file() and path.name != "lock"
    )
    kinds = {name.rpartition("/")[2].partition("-")[0].partition(".")[0] for name in names}
    assert kinds == {
        "manifest",
        "meta",
        "rows",
        "vectors",
        "prefix",
        "codes",
        "lookup",
        "lists",
    } | {*("order", "signs", "dead", "sums")}
    folder = tmp_path / "store"
    shutil.copytree(whole, folder)
    worst = {}
    for name in names:
        path, errors, lost = folder / name, 0, 0
        content = path.read_bytes()
        for how, damaged in _damages(content).items():
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            found = FaissStore.check(f"faiss://{folder}")
            assert any(path.name in str(error) for error in found), (name, how)
            errors = max(errors, _check_answers(folder, expected, path.name))
            lost = max(lost, _check_rescue(folder, records))
            path.write_bytes(content)
        worst[name] = errors, lost
    assert FaissStore.check(f"faiss://{folder}") == []
    assert _check_answers(folder, expected, "") == 0
