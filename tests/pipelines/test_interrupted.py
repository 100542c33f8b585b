"""Ingests that are ended from outside, in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nexus_vdb as nx
from nexus_vdb.testing.compare import assert_same_records
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.types import Records

SCRIPT = """
import sys, time
import nexus_vdb.encoder
from nexus_vdb.cli import run
from nexus_vdb.pipelines import _ingest_stages
from nexus_vdb.testing.encoder import FakeEncoder

class SlowEncoder(FakeEncoder):
    def encode(self, texts):
        time.sleep(0.05)
        return super().encode(texts)

_ingest_stages._HELD_SECONDS = 0
nexus_vdb.encoder.load_encoder = lambda name=None, threads=None: SlowEncoder()
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(3000):
            text = ". ".join(f"Sentence {part} of {number}" for part in range(1 + number % 9))
            file.write(json.dumps({"id": f"d{number}", "text": text}) + "\n")
    return path


def start(corpus: Path, url: str) -> subprocess.Popen[str]:
    """An ingest that has finished some documents, but not all."""
    words = ["ingest", str(corpus), "--store", url, "--chunk-tokens", "16", "--chunk-overlap", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with nx.open(url) as collection:
                if 0 in collection.store.fingerprints(["d0"]).get("d0", {}):
                    return process
        except nx.StoreNotFound:
            pass
        time.sleep(0.01)
    raise AssertionError("nothing was ever written")


def finish(collection: nx.Collection, corpus: Path) -> int:
    report = collection.ingest(corpus, chunk_tokens=16, chunk_overlap=0)
    assert report.read == 3000
    return report.embedded


def everything(collection: nx.Collection) -> Records:
    return collection.get([f"d{number}" for number in range(3000)])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_same_command_again_gives_a_clean_store(
    tmp_path: Path, corpus: Path, number: signal.Signals
) -> None:
    url = f"faiss://{tmp_path}/index"
    with start(corpus, url) as process:
        process.send_signal(number)
        assert process.stderr is not None
        told = process.stderr.read()
    if number is not signal.SIGKILL:
        assert process.returncode == 130
        assert f"goes on from here: nexus-vdb ingest {corpus} --store {url} --chunk" in told
        assert "Traceback" not in told
    with (
        nx.open(url, encoder=FakeEncoder()) as collection,
        nx.open(f"faiss://{tmp_path}/clean", encoder=FakeEncoder()) as clean,
    ):
        assert 0 < finish(collection, corpus) < finish(clean, corpus) == 3000
        assert collection.count == clean.count
        assert_same_records(everything(collection), everything(clean))
        assert finish(collection, corpus) == 0
