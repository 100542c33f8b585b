"""What an ingest tells while it runs: to Prometheus, to a log, to a terminal, on one line each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from nexus_vdb import cli
from nexus_vdb.connectors.prometheus import serve_metrics
from nexus_vdb.errors import ConfigError
from nexus_vdb.reports import IngestReport
from nexus_vdb.testing.encoder import FakeEncoder

SCRIPT = """
import sys, threading
import nexus_vdb.encoder
from nexus_vdb.cli import run
from nexus_vdb.pipelines import _ingest_stages
from nexus_vdb.testing.encoder import FakeEncoder

_ingest_stages._HELD_SECONDS, _ingest_stages.PART = 0, 512

class Waiting(FakeEncoder):
    def encode(self, texts):
        if len(texts) < 512:
            sys.stdin.readline()  # the last part waits until the test says go
        return super().encode(texts)

nexus_vdb.encoder.load_encoder = lambda name=None, threads=None: Waiting(64)
sys.exit(run(sys.argv[1:]))
"""


def start(folder: Path, *words: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """An ingest of 600 documents and a bad row that stops after 512 until it gets a line."""
    rows = [json.dumps({"id": str(n), "text": f"text number {n}"}) for n in range(600)]
    (folder / "corpus.jsonl").write_text("\n".join([*rows, "{broken"]) + "\n", encoding="utf-8")
    command = [sys.executable, "-c", SCRIPT, "ingest", "corpus.jsonl", "--store", "faiss://index"]
    return subprocess.Popen(
        [*command, *words],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_metrics_and_logs_of_a_running_ingest(tmp_path: Path) -> None:
    started = datetime.now(timezone.utc)
    words = ["--metrics-port", "0", "--log-json", "--json"]
    with start(tmp_path, *words) as process:
        assert process.stderr
        assert process.stdin
        assert process.stdout
        first = json.loads(process.stderr.readline())
        url = first["message"].rpartition(" ")[2]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", url)
        found = metrics(url)
        while not found["nexus_vdb_ingest_chunks_total"]:
            found = metrics(url)
        outcomes = {
            name: found[f'nexus_vdb_ingest_documents_total{{outcome="{name}"}}']
            for name in ("read", "embedded", "skipped", "quarantined", "deleted")
        }
        assert outcomes.pop("read") >= 512
        assert outcomes.pop("quarantined") in (0, 1)
        assert outcomes == {"embedded": 512, "skipped": 0, "deleted": 0}
        for stage in ("reading", "embedding", "writing"):
            assert found[f'nexus_vdb_ingest_stage_seconds_total{{stage="{stage}"}}'] > 0
        assert found['nexus_vdb_ingest_stage_seconds_total{stage="finishing"}'] == 0
        assert found["nexus_vdb_ingest_store_retries_total"] == 0
        process.stdin.write("go\n")
        process.stdin.flush()
        report = json.loads(process.stdout.read())
        events = [first, *map(json.loads, process.stderr)]
    assert process.returncode == 1
    assert (report["read"], report["embedded"], report["quarantined"]) == (600, 600, 1)
    assert [one["event"] for one in events] == ["note", "start", "quarantined", "finish", "note"]
    for one in events:
        moment = datetime.fromisoformat(one["time"])
        assert moment.utcoffset() == timedelta(0)
        assert started - timedelta(seconds=1) < moment <= datetime.now(timezone.utc)
    bad = events[2]
    assert (bad["file"].rpartition("/")[2], bad["row"]) == ("corpus.jsonl", 601)
    assert bad["reason"].startswith("broken JSON")
    assert events[1]["store"] == "faiss://index"
    assert events[3]["embedded"] == 600


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    with start(tmp_path, stderr=theirs) as process:
        os.close(theirs)
        assert process.stdin
        assert process.stdout
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.read().startswith("600 documents read: 600 embedded (600 chunks)")
        drawn = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "documents" in drawn
    assert "\x1b[" in drawn


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def load(name: str | None = None, *, threads: int | None = None) -> FakeEncoder:
        return FakeEncoder(64)

    monkeypatch.setattr("nexus_vdb.encoder.load_encoder", load)
    monkeypatch.setattr("nexus_vdb.cli.common.LINE_SECONDS", 0)
    monkeypatch.setattr("nexus_vdb.cli.watching.LINE_SECONDS", 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n')
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, list[str]]:
    code = cli.run(["ingest", "a.jsonl", "--store", "faiss://index", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


@pytest.mark.usefixtures("folder")
def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, lines = run(capsys)
    assert code == 0
    last = r"documents: 2 of 2, 0:00:00 left; [\d,]+/s: 2 embedded, 0 unchanged, 0 set aside"
    assert re.fullmatch(last, lines[-1])
    assert run(capsys, "--json")[2] == []


@pytest.mark.usefixtures("folder")
def test_progress_and_errors_are_events(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, lines = run(capsys, "--log-json")
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert code == 0
    assert out.startswith("2 documents read")
    assert {one["event"] for one in events} == {"start", "progress", "finish"}
    assert events[-2]["embedded"] == 2
    assert events[-2]["rate"] > 0
    (folder / "a.jsonl").unlink()
    code, out, lines = run(capsys, "--log-json")
    assert (code, out, len(lines)) == (3, "", 1)
    event = json.loads(lines[0])
    assert (event["event"], event["level"], event["error"]) == ("error", "error", "SourceError")
    assert event["message"] == "no such file or folder: a.jsonl"
    assert run(capsys)[2] == ["error: no such file or folder: a.jsonl"]


def test_a_port_that_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_metrics(IngestReport(retries=3), port=0) as port:
        assert (
            metrics(f"http://127.0.0.1:{port}/metrics")["nexus_vdb_ingest_store_retries_total"] == 3
        )
        code, _, lines = run(capsys, "--metrics-port", str(port))
        assert code == 2
        assert f"Invalid metrics_port={port}: cannot listen at 127.0.0.1" in lines[0]
    with pytest.raises(ConfigError, match="cannot listen at 203.0.113.1"):
        serve_metrics(IngestReport(), port=0, host="203.0.113.1").__enter__()
    assert not (folder / "index").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-delete", "lots"], "Invalid max_delete='lots'; valid: a valid number"),
        (["--max-delete", "150%"], "Invalid max_delete=1.5; valid: less than or equal to 1"),
        (["--metrics-port", "99999"], "Invalid metrics_port=99999; valid: less than or equal"),
        (["--replay", "bad.jsonl"], "a replay reads no other source"),
    ],
)
def test_wrong_options_cost_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, _, lines = run(capsys, *words)
    assert code == 2
    assert message in lines[0]


@pytest.mark.usefixtures("folder")
def test_replay_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.jsonl").write_text('{"id": 1, "text": "one"}\n{"id": 2, "text": }\n')
    assert run(capsys)[0] == 1
    words = ["ingest", "--replay", "quarantine.jsonl", "--store", "faiss://index"]
    code = cli.run(words)
    assert code == 1
    assert "bad rows are still in quarantine.jsonl" in capsys.readouterr().err
    entry = json.loads(Path("quarantine.jsonl").read_text())
    entry["raw"] = '{"id": 2, "text": "two"}'
    Path("quarantine.jsonl").write_text(json.dumps(entry) + "\n")
    assert cli.run(words) == 0
    assert not Path("quarantine.jsonl").exists()
    Path("job.toml").write_text('sources = ["a.jsonl"]\nmax_delete = "20%"\n')
    assert cli.run([*words, "--config", "job.toml"]) == 2  # nothing is left to replay
    assert "Invalid replay=quarantine.jsonl" in capsys.readouterr().err
