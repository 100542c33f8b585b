from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nexus_vdb as nx
from nexus_vdb.pipelines.copy import checksum, copy
from nexus_vdb.reports import CopyReport
from nexus_vdb.testing.compare import assert_same_records
from nexus_vdb.testing.encoder import FakeEncoder

ENCODER = FakeEncoder(64)


def filled(url: str, count: int = 1500) -> nx.Collection:
    collection = nx.open(url, encoder=ENCODER)
    metadata = [{"number": number, "tags": ["a", None, {"b": 1.5}]} for number in range(count)]
    texts = [f"text {number}" for number in range(count)]
    collection.add(texts, ids=[f"d{number}" for number in range(count)], metadata=metadata)
    return collection


def test_a_copy_holds_the_same_and_embeds_nothing(tmp_path: Path) -> None:
    source = filled("memory://")
    source.store.set_meta("calibration", {"n": 1, "sample": 1, "table": {}})
    target = nx.open(f"faiss://{tmp_path}/index")
    seen: list[int] = []

    def progress(report: CopyReport) -> None:
        assert report.total == 1500
        seen.append(report.copied)

    report = copy(source, target, verify=True, progress=progress)
    assert (report.copied, report.verified) == (1500, True)
    assert seen == [1024, 1500]
    ids = [f"d{number}" for number in range(0, 1500, 50)]
    assert_same_records(target.get(ids), source.get(ids))
    assert target.info().schema == source.info().schema
    assert dict(target.info().meta) == dict(source.info().meta)
    assert copy(source, target, verify=True).verified
    assert target.count == 1500


def test_verify_tells_of_other_records_and_of_changes() -> None:
    source = filled("memory://", 10)
    target = filled("memory://", 11)
    assert copy(source, target).verified is None
    assert copy(source, target, verify=True).verified is False
    before = checksum(source.store)
    records = source.get(["d3"])
    source.store.upsert(replace(records, codes=records.codes ^ np.uint64(1)))
    assert checksum(source.store) != before
    source.store.upsert(records)
    assert checksum(source.store) == before


def test_another_model_or_nothing_there_is_refused() -> None:
    source = filled("memory://", 3)
    other = nx.open("memory://", encoder=FakeEncoder(64, seed=1))
    other.add(["text"])
    with pytest.raises(nx.FingerprintMismatch):
        copy(source, other)
    with pytest.raises(nx.StoreNotFound):
        copy(nx.open("memory://"), source)


def test_a_hash_fitted_on_other_vectors_is_refused() -> None:
    collections = []
    for seed in (0, 1):
        vectors = np.random.default_rng(seed).standard_normal((4100, 64)).astype(np.float32)
        collection = nx.open("memory://")
        texts = [f"text {seed} {number}" for number in range(4100)]
        collection.add(texts, vectors=vectors)
        collections.append(collection)
    with pytest.raises(nx.FingerprintMismatch, match="hash of its own"):
        copy(*collections)
    fresh = nx.open("memory://")
    assert copy(collections[0], fresh, verify=True).verified
    assert fresh.info().meta["hash"] == "itq"
