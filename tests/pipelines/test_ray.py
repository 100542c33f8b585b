"""Ingest over Ray: the same store as that of one process, whoever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import nexus_vdb as nx
from nexus_vdb import cli
from nexus_vdb.interfaces import BadRow
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.reports import IngestReport
from nexus_vdb.testing.compare import assert_same_records
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.types import Document, QueryBatch, Records
from tests.qdrant_server import QdrantServer, quick_folder

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from nexus_vdb.pipelines import ray as engine  # noqa: E402

# Ray leaves sockets and processes to the garbage collector, and warns of what it does itself.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHUNK = {"chunk_tokens": 12, "chunk_overlap": 0}
ROWS = 900  # eight batches
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}


class TracingEncoder(FakeEncoder):
    """Leaves a file for each process that embeds, and takes its time."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        super().__init__(64)
        self._folder, self._seconds = folder, seconds

    def encode(self, texts: Sequence[str]) -> QueryBatch:
        (self._folder / f"{os.getpid()}.{ray.get_runtime_context().get_node_id()}").touch()
        time.sleep(self._seconds)
        return super().encode(texts)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one processor each, beside that of the driver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
        for _ in range(2):
            made.add_node(**NODE)
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield made
        ray.shutdown()
        made.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


@pytest.fixture(params=["faiss", "qdrant"])
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """URLs of stores by name."""
    if request.param == "faiss":
        yield lambda name: f"faiss://{tmp_path / name}"
        return
    with quick_folder() as folder, QdrantServer(folder) as server:
        yield server.url


def row(number: int, note: str = "") -> dict[str, Any]:
    parts = [f"Sentence {part} of document {number} {note}." for part in range(1 + number % 3)]
    return {"id": f"d{number}", "text": " ".join(parts), "group": number % 7, "title": f"T{number}"}


def write(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(collection: nx.Collection, path: Path, **options: Any) -> IngestReport:
    progress = options.pop("progress", None)
    given = {"sources": [str(path)], "quarantine": path.with_suffix(".bad"), **CHUNK, **options}
    return ingest(collection, IngestSettings(**given), progress=progress)


def stored(collection: nx.Collection) -> Records:
    ids = [id_ for records in collection.store.scan() for id_ in records.ids]
    return collection.store.get(sorted(ids))


def counts(report: IngestReport) -> tuple[int, ...]:
    numbers = report.read, report.embedded, report.skipped, report.chunks
    return *numbers, report.deleted, report.quarantined


RAY = {"engine": "ray", "workers": 2}


@pytest.mark.usefixtures("cluster")
def test_same_store_and_report_as_in_one_process_though_a_worker_is_killed(
    tmp_path: Path,
    traces: Path,
    url_of: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows: list[dict[str, Any] | str] = [row(number) for number in range(ROWS)]
    rows[5:5] = ["{broken", row(3)]
    rows += [row(1, "again"), '{"id": "x"}']
    paths = [write(tmp_path / f"{name}.jsonl", rows) for name in "ab"]
    killed: list[int] = []

    def kill(report: IngestReport) -> None:
        if report.embedded and not killed:
            killed.append(pids(traces).pop())
            os.kill(killed[0], signal.SIGKILL)

    local = nx.open(url_of("local"), encoder=FakeEncoder(64))
    spread = nx.open(url_of("spread"), encoder=TracingEncoder(traces, 0.2))
    with local, spread:
        expected = run(local, paths[0])
        found = run(spread, paths[1], progress=kill, **RAY)
        assert killed
        assert found.read == found.embedded + found.skipped == expected.read == ROWS
        assert_same_records(stored(spread), stored(local))
        bad = [path.with_suffix(".bad").read_text() for path in paths]
        assert bad[1].replace("b.jsonl", "a.jsonl") == bad[0]
        assert bad[0].count("\n") == found.quarantined == 4

        for file in traces.iterdir():
            file.unlink()
        assert counts(run(spread, paths[1], **RAY)) == (ROWS, 0, ROWS, 0, 0, 4)
        assert list(traces.iterdir()) == []

        changed = [row(number, "new" if number % 50 == 0 else "") for number in range(90, ROWS)]
        for path in paths:
            write(path, changed)
        expected = run(local, paths[0], delete_missing=True)
        found = run(spread, paths[1], delete_missing=True, **RAY)
        assert counts(found) == counts(expected)
        assert (found.deleted, found.embedded) == (90, 16)
        assert_same_records(stored(spread), stored(local))
        infos = [one.store.info() for one in (local, spread)]
        assert infos[0].schema == infos[1].schema
        assert infos[0].meta.keys() == infos[1].meta.keys()
    assert [one for one in caplog.records if one.name.startswith("nexus_vdb")] == []


@pytest.mark.usefixtures("cluster")
def test_a_dry_run_and_a_stop(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [row(number) for number in range(ROWS)])
    with nx.open(f"faiss://{tmp_path}/index", encoder=FakeEncoder(64)) as spread:
        dry = run(spread, path, dry_run=True, **RAY)
        assert not (tmp_path / "index").exists()
        settings = IngestSettings(sources=[str(path)], **CHUNK, **RAY)
        stop = threading.Event()
        report = ingest(spread, settings, progress=lambda _: stop.set(), stop=stop)
        assert report.interrupted
        assert 0 < report.embedded < ROWS
        again = run(spread, path)
        assert (again.skipped, again.embedded) == (report.embedded, ROWS - report.embedded)
        assert dry.chunks == report.chunks + again.chunks == spread.count


class Wide:
    """A source of long documents that says how far it was read."""

    def __init__(self, count: int, told: Path) -> None:
        self._count, self._told = count, told

    def read(self, *, batch_size: int, on_bad_row: BadRow) -> Iterator[list[Document]]:
        for number in range(self._count):
            self._told.write_text(str(number))
            yield [Document(str(number), f"text {number}", {"wide": "x" * 1_000_000})]

    def size(self) -> int:
        return self._count


@pytest.mark.usefixtures("cluster")
def test_the_corpus_is_not_read_ahead_of_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, farthest = tmp_path / "told", 0
    rows_of = engine._rows

    def rows(table: Any) -> Iterator[Any]:
        assert table.num_rows == 1
        assert table.nbytes < 1_500_000
        yield from rows_of(table)

    monkeypatch.setattr(engine, "_rows", rows)

    def wait(report: IngestReport) -> None:
        nonlocal farthest
        if report.embedded == 1 and not farthest:
            time.sleep(4)
            farthest = int(told.read_text())

    with nx.open(f"faiss://{tmp_path}/index", encoder=FakeEncoder(64)) as spread:
        settings = IngestSettings(**CHUNK, **RAY)
        report = ingest(spread, settings, source=Wide(60, told), progress=wait)
    assert report.embedded == 60
    assert 0 < farthest < 3 * engine._AHEAD + 4  # the window, and what waits at it


def test_a_node_dies(tmp_path: Path, traces: Path, cluster: Cluster) -> None:
    path = write(tmp_path / "c.jsonl", [row(number) for number in range(ROWS)])
    dead: list[str] = []

    def kill(report: IngestReport) -> None:
        if report.embedded and not dead:
            dead.append(next(traces.iterdir()).name.partition(".")[2])
            [node] = [one for one in cluster.worker_nodes if one.node_id == dead[0]]
            cluster.remove_node(node, allow_graceful=False)

    local = nx.open(f"faiss://{tmp_path}/local", encoder=FakeEncoder(64))
    spread = nx.open(f"faiss://{tmp_path}/spread", encoder=TracingEncoder(traces, 0.2))
    with local, spread:
        run(local, path)
        report = run(spread, path, progress=kill, **RAY)
        assert dead
        assert (report.read, report.embedded) == (ROWS, ROWS)
        assert_same_records(stored(spread), stored(local))


def test_workers_run_where_the_gpus_are(tmp_path: Path, traces: Path, cluster: Cluster) -> None:
    path = write(tmp_path / "c.jsonl", [row(number) for number in range(300)])
    node = cluster.add_node(**NODE | {"num_cpus": 2}, num_gpus=1)
    with nx.open(f"faiss://{tmp_path}/spread", encoder=TracingEncoder(traces)) as spread:
        assert run(spread, path, **RAY).embedded == 300
    cluster.remove_node(node)
    assert {trace.name.partition(".")[2] for trace in traces.iterdir()} == {node.node_id}


SCRIPT = """
import os, sys, time
from pathlib import Path
import nexus_vdb.encoder
from nexus_vdb.cli import run
from nexus_vdb.testing.encoder import FakeEncoder

class SlowEncoder(FakeEncoder):
    def encode(self, texts):
        Path("traces", str(os.getpid())).touch()
        time.sleep(0.3)
        return super().encode(texts)

nexus_vdb.encoder.load_encoder = lambda name=None, threads=None: SlowEncoder(64)
sys.exit(run(sys.argv[1:]))
"""


def test_the_command_is_killed(
    tmp_path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "c.jsonl", [row(number) for number in range(2 * ROWS)])
    words = ["ingest", "c.jsonl", "--chunk-tokens", "12", "--chunk-overlap", "0", "--json"]
    words += ["--store", "faiss://index", "--engine", "ray", "--workers", "2"]
    command = [sys.executable, "-c", SCRIPT, *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        until(lambda: 0 in first_document("faiss://index"))
        process.kill()
    until(lambda: not any(Path("/proc", str(pid)).exists() for pid in pids(traces)))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["read"] == 2 * ROWS
    assert 0 < report["embedded"] < 2 * ROWS
    with (
        nx.open("faiss://index") as found,
        nx.open("faiss://clean", encoder=FakeEncoder(64)) as clean,
    ):
        run(clean, tmp_path / "c.jsonl")
        assert_same_records(stored(found), stored(clean))
    until(lambda: not any(Path("/proc", str(pid)).exists() for pid in pids(traces)))


def pids(traces: Path) -> set[int]:
    return {int(file.name.partition(".")[0]) for file in traces.iterdir()}


def first_document(url: str) -> dict[int, str]:
    try:
        with nx.open(url) as collection:
            return collection.store.fingerprints(["d0"]).get("d0", {})
    except nx.StoreNotFound:
        return {}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["--workers", "0"], "Invalid workers=0; valid: greater than or equal to 1", 2),
        (["--store", "memory://"], "engine=ray cannot fill memory://", 2),
        (["--store", "qdrant-edge://index"], "engine=ray cannot fill qdrant-edge://", 2),
        (["--engine", "local"], "workers and ray_address are for engine=ray", 2),
        (
            ["--ray-address", "ray://head:10001"],
            "Invalid ray_address=ray://head:10001; valid: H",
            2,
        ),
        (["--ray-address", "127.0.0.1:9"], "Invalid ray_address=127.0.0.1:9: no Ray answers", 2),
    ],
)
def test_wrong_options_cost_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
    code: int,
) -> None:
    monkeypatch.setattr("nexus_vdb.encoder.load_encoder", lambda *_, **__: FakeEncoder(64))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("nexus_vdb.pipelines._ray_cluster._LISTENS", 0.5)
    path = write(tmp_path / "c.jsonl", [row(1)])
    given = ["--store", f"faiss://{tmp_path}/index", "--engine", "ray", "--workers", "2", *words]
    assert cli.run(["ingest", str(path), *given]) == code
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_what_cannot_be_done_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "c.jsonl", [row(1)])
    collection = nx.open(f"faiss://{tmp_path}/index", encoder=FakeEncoder(64))
    with pytest.raises(nx.ConfigError, match="a replay is read by engine=local"):
        run(collection, path, replay=path, **RAY)
    held = FakeEncoder(64)
    vars(held)["lock"] = threading.Lock()
    with pytest.raises(nx.ConfigError, match="cannot be sent to other processes"):
        run(nx.open(f"faiss://{tmp_path}/held", encoder=held), path, **RAY)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(nx.MissingExtra) as caught:
        run(collection, path, **RAY)
    assert caught.value.hint == 'pip install "nexus-vdb[ray]"'
