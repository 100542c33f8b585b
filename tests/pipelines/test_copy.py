from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nexus_vdb as nx
from nexus_vdb.cli import run
from nexus_vdb.pipelines import copy as job
from nexus_vdb.pipelines._checksum import Checksum, _are_halves, checksum
from nexus_vdb.pipelines.copy import copy
from nexus_vdb.registry import open_store
from nexus_vdb.reports import CopyReport
from nexus_vdb.tables import table_of
from nexus_vdb.testing.compare import assert_same_records
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.testing.samples import sample_records
from nexus_vdb.types import StoreSchema

ENCODER = FakeEncoder(64)


def filled(url: str, count: int = 1500) -> nx.Collection:
    collection = nx.open(url, encoder=ENCODER)
    metadata = [{"number": number, "tags": ["a", None, {"b": 1.5}]} for number in range(count)]
    texts = [f"text {number}" for number in range(count)]
    collection.add(texts, ids=[f"d{number}" for number in range(count)], metadata=metadata)
    return collection


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_BATCH", 400)


@pytest.mark.usefixtures("small_batches")
def test_a_copy_holds_the_same_and_embeds_nothing(tmp_path: Path) -> None:
    source = filled("memory://")
    source.store.set_meta("calibration", {"n": 1, "sample": 1, "table": {}})
    source.store.set_meta("ingest", {"chunk_tokens": 99})
    target = nx.open(f"faiss://{tmp_path}/index")
    seen: list[int] = []

    def progress(report: CopyReport) -> None:
        assert report.total == 1500
        seen.append(report.copied)

    report = copy(source, target, verify=True, progress=progress)
    assert (report.copied, report.skipped, report.verified) == (1500, 0, True)
    assert report.precision == "float16"
    assert report.checksum == f"{checksum(source.store).half:016x}"
    assert seen == [400, 800, 1200, 1500]
    ids = [f"d{number}" for number in range(0, 1500, 50)]
    assert_same_records(target.get(ids), source.get(ids))
    assert target.info().schema == source.info().schema
    assert dict(target.info().meta) == dict(source.info().meta)
    again = copy(source, target, verify=True)
    assert (again.copied, again.skipped, again.verified) == (0, 1500, True)
    assert target.count == 1500


def test_only_what_is_new_or_changed_is_written() -> None:
    source, target = filled("memory://", 20), filled("memory://", 12)
    source.add(["another text"], ids=["d3"])
    target.delete(["d5"])
    report = copy(source, target, verify=True)
    assert (report.copied, report.skipped, report.verified) == (8 + 2, 10, True)
    assert target.get(["d3"]).texts == ["another text"]


@pytest.mark.parametrize("url", ["parquet", "faiss"])
def test_there_and_back_through_parquet_loses_no_bit(tmp_path: Path, url: str) -> None:
    schema = StoreSchema(768, (256, 768), "a" * 64, "fake")
    first = open_store(f"faiss://{tmp_path}/first", schema)
    first.upsert(sample_records(300))
    first.set_meta("hash", "model")
    first.close()
    urls = [f"faiss://{tmp_path}/first", f"parquet://{tmp_path}/out", f"{url}://{tmp_path}/back"]
    for one, other in zip(urls, urls[1:], strict=False):
        with nx.open(one) as source, nx.open(other) as target:
            report = copy(source, target, verify=True)
            assert (report.verified, report.precision) == (True, "float32")
            assert target.info().schema == schema
            assert target.info().meta == {"hash": "model"}
            ids = [f"doc/0/{number}" for number in range(100)]
            assert_same_records(target.get(ids), source.get(ids))


def test_verify_tells_of_other_records_and_of_changes() -> None:
    source = filled("memory://", 10)
    target = filled("memory://", 11)
    assert copy(source, target).verified is None
    assert copy(source, target, verify=True).verified is False
    before = checksum(source.store)
    records = source.get(["d3"])
    turned = records.vectors[:, ::-1].copy()
    for damaged in (
        replace(records, codes=records.codes ^ np.uint64(1)),
        replace(records, content_hashes=["other"]),
        replace(records, texts=["other"]),
        replace(records, vectors=turned),
    ):
        source.store.upsert(damaged)
        assert checksum(source.store).shared(before) is None
    source.store.upsert(records)
    assert checksum(source.store).shared(before) == ("float32", f"{before.exact:016x}")
    nudged = records.vectors * np.float32(1 + 1e-6)
    source.store.upsert(replace(records, vectors=nudged))
    assert checksum(source.store).shared(before) == ("float16", f"{before.half:016x}")


def test_vectors_that_were_swapped_are_seen_and_overwritten() -> None:
    source, target = filled("memory://", 10), filled("memory://", 10)
    records = target.get(["d3", "d4"])
    target.store.upsert(replace(records, vectors=records.vectors[::-1]))
    report = copy(source, target, verify=True)
    assert (report.skipped, report.verified) == (10, False)
    report = copy(source, target, verify=True, overwrite=True)
    assert (report.copied, report.verified) == (10, True)


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
    both = copy(*collections, overwrite=True)
    assert (both.copied, collections[1].count) == (4100, 8200)
    meta = [collection.store.info().meta for collection in collections]
    assert (meta[1]["hash"], meta[1]["itq"]) == (None, meta[0]["itq"])  # to be coded anew
    fresh = nx.open("memory://")
    assert copy(collections[0], fresh, verify=True).verified
    assert fresh.info().meta["hash"] == "itq"


def test_codes_follow_when_the_source_has_got_its_hash_since() -> None:
    source = filled("memory://", 30)
    source.store.set_meta("hash", None)
    target = nx.open("memory://")
    copy(source, target)
    assert target.info().meta.get("hash") is None
    for records in list(source.store.scan()):
        source.store.upsert(replace(records, codes=~records.codes))
    source.store.set_meta("hash", "itq")
    source.store.set_meta("itq", {"mean": [0.0], "projection": [[0.0]]})
    report = copy(source, target, verify=True)
    assert (report.copied, report.verified) == (30, True)
    assert dict(target.info().meta) == dict(source.info().meta)


@pytest.mark.usefixtures("small_batches")
def test_stopping_finishes_the_batch_in_hand() -> None:
    source, target, stop = filled("memory://"), nx.open("memory://"), threading.Event()
    report = copy(source, target, verify=True, progress=lambda _: stop.set(), stop=stop)
    assert (report.copied, report.interrupted, report.verified) == (400, True, None)
    assert target.count == 400
    report = copy(source, target, verify=True)
    assert (report.copied, report.skipped, report.verified) == (1100, 400, True)


SLOW = """
import sys, time
from nexus_vdb.cli import run
from nexus_vdb.pipelines import copy as job

def slowly(store, table):
    upsert(store, table)
    time.sleep(0.05)

upsert, job.upsert_table, job._BATCH = job.upsert_table, slowly, 100
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("scheme", "number"),
    [("parquet", signal.SIGKILL), ("faiss", signal.SIGKILL), ("parquet", signal.SIGINT)],
)
def test_a_copy_that_was_ended_goes_on_where_it_was(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    scheme: str,
    number: signal.Signals,
) -> None:
    filled(f"faiss://{tmp_path}/source", 4000).close()
    urls = [f"faiss://{tmp_path}/source", f"{scheme}://{tmp_path}/target"]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, "copy", *urls], stderr=subprocess.PIPE, text=True
    ) as process:
        while not _count(urls[1]):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        assert process.stderr is not None
        told = process.stderr.read()
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert "the same command again goes on from here" in told
    done = _count(urls[1])
    assert 0 < done < 4000
    assert run(["copy", *urls, "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["skipped"], report["copied"], report["verified"]) == (done, 4000 - done, True)


def _count(url: str) -> int:
    try:
        with nx.open(url) as collection:
            return collection.count
    except nx.StoreNotFound:
        return 0


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(f"faiss://{tmp_path}/source", 5).close()
    urls = [f"faiss://{tmp_path}/source", f"parquet://{tmp_path}/target"]
    assert run(["copy", *urls, "--verify"]) == 0
    said = capsys.readouterr().out
    assert "5 records copied; " in said
    assert "both stores hold the same (vectors to float32, checksum " in said
    with nx.open(urls[1]) as target:
        target.delete(["d2"])
        records = target.store.get(target.get(["d3"]).ids)
        target.store.upsert(replace(records, texts=["another text"]))
    assert run(["copy", *urls, "--verify"]) == 1
    told = capsys.readouterr()
    assert "1 records copied, 4 were there already; " in told.out
    assert "--overwrite writes all of them again" in told.err
    assert run(["copy", *urls, "--verify", "--overwrite"]) == 0


@pytest.mark.parametrize(
    "number", [0.0, 0.5, -0.1, 2.0**-14, 2.0**-24, 3 * 2.0**-24, 1.5 * 2.0**-24, 2.0**-30, 1e-5]
)
def test_halves_are_known_from_floats(number: float) -> None:
    vectors = np.full((2, 3), 0.25, dtype=np.float32)
    vectors[1, 2] = number
    halves = vectors.astype(np.float16)
    assert _are_halves(vectors) == (halves == vectors).all()
    assert _are_halves(halves.astype(np.float32))


def test_two_signs_make_another_checksum() -> None:
    records = sample_records(3, dim=64)
    records.vectors[:] = np.abs(records.vectors) + 0.1
    before, after = Checksum(), Checksum()
    before.add(table_of(records))
    records.vectors[1, [1, 7]] *= -1
    after.add(table_of(records))
    assert after.shared(before) is None
