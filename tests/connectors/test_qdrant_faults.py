from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexus_vdb import cli
from nexus_vdb.connectors._qdrant_client import Retry
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.connectors.qdrant import QdrantStore
from nexus_vdb.errors import StoreError, StoreNotFound, StoreUnavailable
from nexus_vdb.filters import parse_filter
from nexus_vdb.testing.compare import Pair, assert_same_records, scan_all, select
from nexus_vdb.testing.store import sample_id, sample_queries, sample_records
from nexus_vdb.types import Records, SearchPlan, StoreSchema
from tests.qdrant_faults import Fault, storm
from tests.qdrant_server import QdrantServer, quick_folder

SCHEMA = StoreSchema(dim=96, cuts=(32, 96), fingerprint="a" * 64, model="fake")
QUICK = Retry(first=0.01, most=0.05)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with quick_folder() as folder, QdrantServer(folder) as server:
        yield server


@pytest.fixture
def store(server: QdrantServer) -> Iterator[QdrantStore]:
    """Sixty records, and a server that has forgotten the requests so far."""
    store = QdrantStore.open(server.url("docs"), SCHEMA, retry=QUICK)
    store.upsert(sample_records(60, dim=96))
    server.requests.clear()
    yield store
    store.close()


@pytest.mark.parametrize(
    "faults",
    [[503, 429, 408], [500, 502, 504], ["cut", "half"], ["mute"], ["torn", "queued", 503, "cut"]],
    ids=str,
)
def test_passing_faults_are_survived(
    server: QdrantServer, store: QdrantStore, faults: list[Fault]
) -> None:
    pair = Pair(store, MemoryStore.open("memory://", SCHEMA))
    pair.reference.upsert(sample_records(60, dim=96))
    server.faults += faults
    pair.upsert(sample_records(30, seed=1, dim=96))
    assert not server.faults
    server.faults += faults
    pair.check_search(sample_queries(2, dim=96), SearchPlan(k=5, candidates="exact", cuts=(96,)))
    server.faults += faults
    ids = [sample_id(row) for row in range(10)]
    assert store.delete(ids=ids) == pair.reference.delete(ids=ids) == 10
    server.faults += ["", *faults]
    where = parse_filter({"lang": "de"})
    assert store.delete(where=where) == pair.reference.delete(where=where) > 0
    assert not server.faults
    pair.check_rows()


@pytest.mark.parametrize("faults", [["mute"], ["", "mute"], ["cut", "", "mute", 503]], ids=str)
def test_a_collection_is_made_though_the_answer_is_lost(
    server: QdrantServer, faults: list[Fault]
) -> None:
    server.faults += faults
    store = QdrantStore.open(server.url("docs"), SCHEMA, retry=QUICK)
    assert not server.faults
    assert (store.count(), store.info().schema) == (0, SCHEMA)
    assert list(server.collections["docs"].indexes) == ["document_id"]
    store.close()


def test_each_further_try_is_logged(
    server: QdrantServer, store: QdrantStore, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults += [503, "cut"]
    with caplog.at_level(logging.INFO, logger="nexus_vdb"):
        assert store.count() == 60
    first, second = caplog.records
    assert {first.name, second.name} == {"nexus_vdb.connectors.qdrant"}
    assert first.levelno == logging.WARNING
    start = f"Qdrant at 127.0.0.1:{server.port}: "
    assert first.getMessage().startswith(start + "503 Service Unavailable; try 2 in 0.0")
    assert "; try 3 in" in second.getMessage()


def test_a_server_that_stays_busy_is_given_up(server: QdrantServer) -> None:
    store = QdrantStore.open(server.url("docs", "?patience=1"), SCHEMA, retry=QUICK)
    server.requests.clear()
    server.storm = lambda: 503
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"times in 1 s .*503 Service Unavail") as caught:
        store.count()
    assert 0.5 < time.monotonic() - started < 5
    assert len(server.requests) > 5
    assert "the same command goes on from there" in caught.value.hint
    server.storm = str
    assert store.count() == 0
    store.close()


def test_no_patience_is_one_try(server: QdrantServer) -> None:
    store = QdrantStore.open(server.url("docs", "?patience=0"), SCHEMA)
    server.faults += ["cut"]
    with pytest.raises(StoreUnavailable, match="was asked once without success"):
        store.count()
    store.close()


def test_a_server_that_is_down_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        url = f"qdrant://{address}/docs"
        with pytest.raises(StoreUnavailable, match=address) as caught:
            QdrantStore.open(url, SCHEMA, retry=replace(QUICK, contact=0.1))
    assert url in caught.value.hint


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_is_left_alone_for_as_long_as_it_asks(
    server: QdrantServer, store: QdrantStore, status: int
) -> None:
    server.faults += [(status, "1")]
    started = time.monotonic()
    assert store.count() == 60
    assert time.monotonic() - started >= 1
    server.faults += [(status, "3600")]
    with pytest.raises(StoreUnavailable, match="was asked once"):
        store.count()
    server.faults += [(status, "Wed, 21 Oct 2026 07:28:00 GMT")]
    assert store.count() == 60


def test_a_slow_server_is_asked_again(server: QdrantServer) -> None:
    pair = Pair(
        QdrantStore.open(server.url("docs", "?timeout=1"), SCHEMA, retry=QUICK),
        MemoryStore.open("memory://", SCHEMA),
    )
    server.delay = 1.4
    server.faults += ["slow"]
    pair.upsert(sample_records(30, dim=96))
    assert not server.faults
    pair.check_rows()
    pair.store.close()


def test_waits_grow_to_their_limit() -> None:
    waits = Retry(first=1, most=5).waits()
    for longest in [1, 2, 4, 5, 5]:
        assert longest / 2 <= next(waits) <= longest


@pytest.mark.parametrize("status", [400, 401, 403, 409, 422])
def test_refusals_are_not_repeated(server: QdrantServer, store: QdrantStore, status: int) -> None:
    server.faults += [status]
    with pytest.raises(StoreError, match=rf"refused \({status}\)") as caught:
        store.count()
    assert not isinstance(caught.value, StoreUnavailable)
    assert ("QDRANT_API_KEY" in caught.value.hint) == (status in (401, 403))
    assert len(server.requests) == 1


def test_a_collection_that_is_deleted_meanwhile(server: QdrantServer, store: QdrantStore) -> None:
    server.remove("docs", None)
    with pytest.raises(StoreNotFound, match="docs"):
        store.count()
    with pytest.raises(StoreNotFound, match="nothing is stored"):
        QdrantStore.open(server.url("docs"))


def test_a_server_of_another_kind(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QdrantServer, "answer", lambda *_: {"hello": "world"})
    with pytest.raises(StoreError, match="cannot be read"):
        QdrantStore.open(server.url("docs"))


def test_a_closed_store_says_so(store: QdrantStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.count()


# Requests that are too large


def test_batches_are_halved_until_the_server_takes_them(server: QdrantServer) -> None:
    pair = Pair(QdrantStore.open(server.url("docs"), SCHEMA), MemoryStore.open("memory://", SCHEMA))
    server.most_bytes = 60_000
    pair.upsert(sample_records(150, dim=96))
    sizes = [one.size for one in server.requests if one.path == "/collections/docs/points"]
    assert max(sizes) > 60_000
    taken = [size for size in sizes if size <= 60_000]
    assert len(taken) == 8
    pair.upsert(sample_records(30, seed=1, dim=96))  # the smaller size is kept to
    assert server.requests[-1].size < 60_000
    pair.check_rows()
    pair.store.close()


@pytest.mark.parametrize("status", [0, 413])
def test_a_record_that_is_too_large_is_named(
    server: QdrantServer, store: QdrantStore, status: int
) -> None:
    records = sample_records(3, seed=1, dim=96)
    server.most_bytes = 40_000
    if status:
        server.faults += [413, "", 413, 413]
    else:
        records = replace(records, texts=["a", "b" * 50_000, "c"])
    with pytest.raises(StoreError, match=records.ids[1]) as caught:
        store.upsert(records)
    assert records.document_ids[1] in str(caught.value)
    assert not isinstance(caught.value, StoreUnavailable)
    assert "smaller chunks" in caught.value.hint


# A whole ingest


class Run:
    """`nexus-vdb ingest` of a corpus with ready-made vectors, in batches of 16 points."""

    def __init__(self, server: QdrantServer, folder: Path, capture: Any) -> None:
        self.server, self.corpus, self._capture = server, folder / "corpus.jsonl", capture

    def write(self, *, count: int = 240, changed: int = 0) -> None:
        draw = np.random.default_rng(0)
        rows = [
            {
                "id": f"doc-{row}",
                "text": f"text {row}" + " anew" * (row < changed),
                "year": 2000 + row % 20,
                "vector": draw.standard_normal(32).round(4).tolist(),
            }
            for row in range(count)
        ]
        self.corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ingest(self, name: str, options: str = "") -> tuple[int, Any, str]:
        """Exit code, report and standard error."""
        url = self.server.url(name, options)
        words = ["--store", url, "--vector-field", "vector", "--json"]
        code = cli.run(["ingest", str(self.corpus), *words])
        captured = self._capture.readouterr()
        return code, json.loads(captured.out) if captured.out else None, captured.err

    def records(self, name: str) -> Records:
        self.server.storm = str
        store = QdrantStore.open(self.server.url(name))
        found = scan_all(store)
        store.close()
        return select(found, sorted(found.ids))


@pytest.fixture
def job(
    server: QdrantServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    monkeypatch.setattr("nexus_vdb.connectors.qdrant.Retry", lambda: QUICK)
    monkeypatch.setattr("nexus_vdb.connectors.qdrant._BATCH_POINTS", 16)
    monkeypatch.chdir(tmp_path)
    return Run(server, tmp_path, capsys)


@pytest.mark.parametrize("seed", range(4))
def test_an_ingest_through_a_storm_ends_as_a_clean_one(
    server: QdrantServer, job: Run, seed: int
) -> None:
    for changed in (0, 100):
        job.write(changed=changed)
        assert job.ingest("clean")[0] == 0
        server.requests.clear()
        server.storm = storm(seed, 0.3)
        code, report, _ = job.ingest("docs")
        server.storm = str
        assert (code, report["embedded"]) == (0, changed or 240)
        assert_same_records(job.records("docs"), job.records("clean"))
        assert QdrantStore.open(server.url("docs")).count() == 240


def test_an_ingest_whose_server_stays_down_stops_and_goes_on_later(
    server: QdrantServer, job: Run
) -> None:
    job.write()
    job.ingest("clean")
    server.storm = lambda: "cut" if server.uploads("docs") == 6 else ""
    code, _, said = job.ingest("docs", "?patience=1")
    assert code == 3
    assert f"error: Qdrant at 127.0.0.1:{server.port} was asked" in said
    assert "without success" in said and "the same command goes on from there" in said
    stored = len(job.records("docs"))
    assert stored == 6 * 16
    code, report, _ = job.ingest("docs")
    assert (code, report["skipped"], report["embedded"]) == (0, stored, 240 - stored)
    assert_same_records(job.records("docs"), job.records("clean"))


def test_an_ingest_waits_for_a_server_that_starts_anew(server: QdrantServer, job: Run) -> None:
    job.write()
    job.ingest("clean")
    fallen: list[bool] = []

    def restart() -> None:
        server.stop()
        time.sleep(0.3)
        server.start()

    def fall() -> Fault:
        if server.uploads("docs") == 6 and not fallen:
            fallen.append(True)
            server.is_up = False
            threading.Thread(target=restart).start()
            return "cut"
        return ""

    server.storm = fall
    code, report, _ = job.ingest("docs")
    assert (code, report["embedded"]) == (0, 240)
    assert fallen
    assert_same_records(job.records("docs"), job.records("clean"))


def test_an_ingest_without_a_server_says_so(server: QdrantServer, job: Run) -> None:
    job.write(count=3)
    server.stop()
    code, _, said = job.ingest("docs", "?patience=1")
    assert code == 3
    assert "times in 1 s without success: [Errno" in said
    server.start()
    assert job.ingest("docs")[0] == 0


def test_writes_that_a_server_loses_are_noticed_and_made_up_for(
    server: QdrantServer,
    job: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job.write()
    assert job.ingest("clean")[0] == 0
    answer = QdrantServer.answer

    def forget(self: QdrantServer, method: str, path: str, body: Any) -> Any:
        if method == "PUT" and path == "/collections/docs/points" and self.uploads("docs") == 3:
            return {"operation_id": 0, "status": "completed"}
        return answer(self, method, path, body)

    monkeypatch.setattr(QdrantServer, "answer", forget)
    assert job.ingest("docs")[0] == 0
    [said] = caplog.messages
    assert "/docs holds 224 records, 240 were expected" in said
    code, report, _ = job.ingest("docs")
    assert (code, report["embedded"]) == (0, 16)
    assert len(caplog.messages) == 1
    assert_same_records(job.records("docs"), job.records("clean"))
