"""`nexus-vdb ingest` is killed by SIGKILL and started again; `make soak` does it for longer."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nexus_vdb.registry import open_store
from nexus_vdb.testing.compare import scan_all, select
from nexus_vdb.types import Records
from tests.kills import SCHEMES, every_step, random_kills, versions
from tests.qdrant_server import quick_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

COMMAND = [sys.executable, "-c", "from nexus_vdb.cli import main; main()", "ingest"]


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_store_survives_kills_at_random_moments(folder: Path, scheme: str) -> None:
    *_, tally = random_kills(scheme, folder, seed=7, kills=50, documents=60)
    assert tally.kills >= 50
    assert tally.versions >= 7
    assert tally.spared > 2000


@pytest.mark.parametrize("scheme", SCHEMES)
def test_store_survives_a_kill_before_each_kind_of_step(folder: Path, scheme: str) -> None:
    *_, tally = every_step(scheme, folder, seed=7, kinds=True)
    assert tally.versions == tally.kills + 3
    assert {"faiss": "os.rename manifest.json.tmp", "qdrant-edge": "engine update"}[scheme] in set(
        tally.last_steps
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_store_survives_kills_of_the_real_command(folder: Path, scheme: str) -> None:
    corpus, dice = folder / "corpus.jsonl", random.Random(7)
    rows = next(versions(dice, documents=60, sentences=1200)).values()
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(name: str) -> subprocess.Popen[bytes]:
        words = [str(corpus), "--store", f"{scheme}://{folder / name}", "--chunk-tokens", "32"]
        return subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL)

    begun = time.monotonic()
    assert start("clean").wait() == 0
    life = time.monotonic() - begun
    for _ in range(2):
        process = start("store")
        time.sleep(dice.uniform(0.4, 0.9) * life)
        process.kill()
        process.wait()
    assert start("store").wait() == 0
    found, expected = (everything(f"{scheme}://{folder / name}") for name in ("store", "clean"))
    assert found.ids == expected.ids
    assert found.texts == expected.texts
    assert found.metadata == expected.metadata
    assert found.content_hashes == expected.content_hashes
    # The int8 network takes its scales from the batch, so a text's vector depends a little on its
    # neighbours there, and after a kill those are others.
    assert np.einsum("nd,nd->n", found.vectors, expected.vectors).min() > 0.99


def everything(url: str) -> Records:
    store = open_store(url)
    records = scan_all(store)
    store.close()
    return select(records, sorted(records.ids))
