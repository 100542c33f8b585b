"""Recall, latency, build time and memory of a `faiss://` store beside other vector indexes.

    python benchmarks/embed_texts.py runs/million TEXTS.parquet…        once
    python benchmarks/search.py run runs/million --count 10000 --count 100000 --count 1000000
    python benchmarks/search.py report runs/million --out benchmarks/search.md

What is compared is installed by `pip install ".[bench]"`. Each engine is built and measured in
processes of its own, on the same vectors and held-out queries; what has been done is kept in the
folder and not done again. Build time is processor time (user and system, all threads), which other
work on the machine disturbs little; latency is wall time of one query at a time on one thread,
after a first pass over the queries.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
from engines import ENGINES, Vectors
from search_report import page, picture

from nexus_vdb.types import Floats

K = 10
QUERIES = 1000
SECONDS = 20.0
"""A setting is measured on all queries, or on as many as fit into this."""

RESULTS = "search.json"


def load(folder: Path) -> dict[str, Any]:
    """What has been measured so far."""
    path = folder / RESULTS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def keep(folder: Path, name: str, value: Any) -> None:
    """Add a result."""
    results = load(folder) | {name: value}
    (folder / RESULTS).write_text(json.dumps(results, indent=1))


def truth(folder: Path, vectors: Vectors, queries: Floats) -> np.ndarray[Any, Any]:
    """Rows of the exact top k, int64 `[q, k]`; made once for each size."""
    path = folder / f"truth-{vectors.count}.npy"
    if not path.exists():
        scores = np.full((len(queries), K), -2, np.float32)
        rows = np.zeros((len(queries), K), np.int64)
        for start, block in vectors.blocks():
            ids = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
            both = np.concatenate([scores, queries @ block.T], axis=1)
            all_rows = np.concatenate([rows, ids], axis=1)
            places = np.argpartition(-both, K, axis=1)[:, :K]
            scores = np.take_along_axis(both, places, 1)
            rows = np.take_along_axis(all_rows, places, 1)
        np.save(path, rows)
    return np.asarray(np.load(path))


def recall(found: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    """Share of the exact top k that was found."""
    pairs = zip(found, right, strict=True)
    return sum(len(set(mine) & set(true)) for mine, true in pairs) / right.size


def memory() -> dict[str, int]:
    """Bytes of this process: its own, without what malloc has free, and of mapped files."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {"own": int(values["RssAnon"]) * 1024, "mapped": int(values["RssFile"]) * 1024}


def place(folder: Path, engine: str, count: int) -> Path:
    """Where an index lies."""
    return folder / "indexes" / f"{list(ENGINES).index(engine)}-{count}"


def build(folder: Path, engine: str, count: int) -> dict[str, Any]:
    """Make an index."""
    target = place(folder, engine, count)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    started = time.perf_counter()
    ENGINES[engine]().build(Vectors(folder / "vectors.f16", count), target)
    used = resource.getrusage(resource.RUSAGE_SELF)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "disk_bytes": size,
    }


def measure(folder: Path, engine: str, count: int) -> dict[str, Any]:
    """Open an index and ask it."""
    queries = np.load(folder / "queries.npz")["vectors"][:QUERIES]
    right = truth(folder, Vectors(folder / "vectors.f16", count), queries)
    one = ENGINES[engine]()
    before = memory()
    started = time.perf_counter()
    one.open(place(folder, engine, count))
    one.search(queries[:1], K, one.settings[len(one.settings) // 2])
    opened = time.perf_counter() - started
    points = []
    for setting in one.settings:
        point = ask(one, queries, right, setting)
        grown = {key: now - before[key] for key, now in memory().items()}
        points.append(point | {"memory": grown})
    return {"open_seconds": opened, "points": points}


def ask(engine: Any, queries: Floats, right: np.ndarray[Any, Any], setting: Any) -> dict[str, Any]:
    """Recall and times of one setting."""
    started = time.perf_counter()
    engine.search(queries[:5], K, setting)
    count = max(20, min(len(queries), int(SECONDS * 5 / (time.perf_counter() - started))))
    batch_started = time.perf_counter()
    found = engine.search(queries[:count], K, setting)
    batch = time.perf_counter() - batch_started
    times = []
    for query in queries[:count]:
        started = time.perf_counter()
        engine.search(query[None], K, setting)
        times.append(time.perf_counter() - started)
    return {
        "setting": setting,
        "queries": count,
        "recall": recall(found, right[:count]),
        "p50_ms": 1000 * float(np.median(times)),
        "p99_ms": 1000 * float(np.quantile(times, 0.99)),
        "batch_per_second": count / batch,
    }


@click.group()
def main() -> None:
    """Compare vector indexes."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", "counts", multiple=True, type=int, default=[10_000, 100_000])
@click.option("--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)))
@click.option("--only", type=click.Choice(["build", "measure"]))
@click.option("--again", is_flag=True, help="Also what has been done before.")
def run(
    folder: Path, counts: tuple[int, ...], engines: tuple[str, ...], only: str | None, again: bool
) -> None:
    """Build and measure what has not been."""
    for count in counts:
        for engine in engines or ENGINES:
            for step in ("build", "measure"):
                name = f"{step} {engine} {count}"
                if (only in (None, step)) and (again or name not in load(folder)):
                    child(folder, step, engine, count)
                    print(name, json.dumps(load(folder).get(name))[:150], flush=True)


def child(folder: Path, step: str, engine: str, count: int) -> None:
    """Carry out a step in a process of its own."""
    threads = str(os.cpu_count() if step == "build" else 1)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "LANCE_CPU_THREADS")
    words = [sys.executable, __file__, "step", str(folder), step, engine, str(count)]
    subprocess.run(words, env=os.environ | dict.fromkeys(names, threads), check=True)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/search.md"))
def report(folder: Path, out: Path) -> None:
    """Write the page, and the picture beside it."""
    results = load(folder)
    picture(results, list(ENGINES), out.with_suffix(".png"))
    out.write_text(page(results, list(ENGINES)))


@main.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("step")
@click.argument("engine")
@click.argument("count", type=int)
def step(folder: Path, step: str, engine: str, count: int) -> None:
    """One step, in this process."""
    done = {"build": build, "measure": measure}[step](folder, engine, count)
    keep(folder, f"{step} {engine} {count}", done)


if __name__ == "__main__":
    main()
