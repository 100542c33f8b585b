"""What `nexus-vdb ingest`, `verify` and `copy` take in time and memory, and what they survive.

    python benchmarks/ingest.py --data ../shared/data --out benchmarks/ingest.md
    python benchmarks/ingest.py --only scifact --only vectors --again
    python benchmarks/ingest.py --rows 1000 --kills 10 --megabytes 1        small, to try it

Every figure is that of a command in a process of its own: wall time, and the greatest memory that
the kernel saw it hold. What has been measured is kept beside the page, as JSON, and not measured
again; the page is made of whatever is there, so the long parts can be run one by one. Corpora and
stores are made in `--work`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import click
from ingest_report import page

# Nothing heavy may be imported here: a process begins with its parent's peak of memory as its own.

Result = dict[str, Any]
Units = Iterator[tuple[str, Callable[[], Result]]]

HERE = Path(__file__).resolve().parent
CLI = (sys.executable, "-c", "from nexus_vdb.cli import main; main()")
INPUTS = (sys.executable, str(HERE / "ingest_inputs.py"))
LOOK = 0.02  # seconds
_BYTES = 1 if sys.platform == "darwin" else 1024  # that `ru_maxrss` counts in


@dataclass(frozen=True)
class Bench:
    """Where things are, and how large they are to be."""

    data: Path
    work: Path
    sizes: tuple[int, ...]
    records: int
    megabytes: float
    kills: int

    def made(self, kind: str, name: str, *options: str) -> str:
        """A corpus; made once."""
        path = self.work / name
        if not path.exists():
            unfinished = path.with_name(f"unfinished-{name}")
            source = str(self.data / "train")
            subprocess.run([*INPUTS, kind, source, str(unfinished), *options], check=True)
            unfinished.rename(path)
        return str(path)

    def fresh(self, name: str, scheme: str = "faiss") -> str:
        """URL of a store that is not there yet."""
        shutil.rmtree(self.work / name, ignore_errors=True)
        return f"{scheme}://{self.work / name}"


def own_memory(process: subprocess.Popen[str], peaks: list[int]) -> None:
    """Follow the memory of a process that is no mapped file, until it ends; in bytes."""
    status = Path(f"/proc/{process.pid}/status")
    while process.returncode is None:
        with contextlib.suppress(OSError):
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            peaks.append(int(lines.get("RssAnon", "0").split()[0]) * 1024)
        time.sleep(LOOK)


def measured(*words: str) -> Result:
    """Run a command that prints JSON last; its own words, wall seconds and peak memory in MB."""
    peaks = [0]
    started = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=HERE.parent) as process:
        assert process.stdout is not None
        threading.Thread(target=own_memory, args=(process, peaks), daemon=True).start()
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"exit code {process.returncode}: {' '.join(words)}")
    wall = time.perf_counter() - started
    peak = usage.ru_maxrss * _BYTES / 1e6
    told = json.loads(said.splitlines()[-1])
    if isinstance(told, dict):
        told.pop("store", None)  # what is kept names no path of the machine
    cpu = usage.ru_utime + usage.ru_stime
    times = {"wall": round(wall, 2), "cpu": round(cpu, 2)}
    return {"told": told, "peak_mb": round(peak), "own_mb": round(max(peaks) / 1e6)} | times


def ingest(corpus: str, store: str, *options: str) -> Result:
    """One `nexus-vdb ingest`."""
    return measured(*CLI, "ingest", corpus, "--store", store, "--json", *options)


def scifact(bench: Bench) -> Units:
    """Ingest SciFact twice, and verify it."""

    def run() -> Result:
        corpus = str(bench.data / "eval" / "scifact" / "corpus.jsonl")
        store, field = bench.fresh("scifact"), ("--id-field", "_id")
        first, second = (ingest(corpus, store, *field) for _ in range(2))
        words = (*CLI, "verify", corpus, "--store", store, "--json", *field)
        return {"first": first, "second": second, "verify": measured(*words)}

    yield "scifact", run


def kills(bench: Bench) -> Units:
    """Kill ingests before every step and at random."""
    count = str(bench.kills)
    words = (sys.executable, "-m", "tests.soak", "--json", "--kills", count)
    yield f"kills {count}", lambda: measured(*words)


def chunk(bench: Bench) -> Units:
    """Cut one long document into chunks."""
    yield f"chunk {bench.megabytes:g}", lambda: measured(*INPUTS, "chunk", _document(bench))


def document(bench: Bench) -> Units:
    """Ingest it."""
    name = f"document {bench.megabytes:g}"
    yield name, lambda: ingest(_document(bench), bench.fresh("document"))


def _document(bench: Bench) -> str:
    size = f"{bench.megabytes:g}"
    return bench.made("document", f"document-{size}.jsonl", "--megabytes", size)


def memory(bench: Bench) -> Units:
    """Ingest more and more rows."""
    yield "memory model", lambda: measured(*INPUTS, "model")
    for count in bench.sizes:
        for kind in ("parquet", "jsonl"):
            yield f"memory {kind} {count}", partial(_rows, bench, kind, count)


def _rows(bench: Bench, kind: str, count: int) -> Result:
    return ingest(_corpus(bench, kind, count), bench.fresh("rows"))


def _corpus(bench: Bench, kind: str, count: int) -> str:
    return bench.made("rows", f"rows-{count}.{kind}", "--count", str(count))


def rate(bench: Bench) -> Units:
    """A whole ingest beside the encoder alone, of abstracts and of short texts, few and many."""
    words = (sys.executable, str(HERE / "ingest_rate.py"), "--json")
    for name in ("cranfield", "scifact", "quora-small"):
        corpus = str(bench.data / "eval" / name / "corpus.jsonl")
        yield f"rate {name}", partial(measured, *words, corpus, "--id-field", "_id")
    for count, rounds in zip(bench.sizes[1:], ("3", "1"), strict=False):
        corpus = _corpus(bench, "parquet", count)
        yield f"rate short-{count}", partial(measured, *words, corpus, "--rounds", rounds)


def vectors(bench: Bench) -> Units:
    """Ingest ready-made vectors, copy them to an open format, and back."""
    count = str(bench.records)

    def run() -> Result:
        corpus = bench.made("vectors", f"vectors-{count}.parquet", "--count", count)
        store, open_format = bench.fresh("vectors"), bench.fresh("copied", "parquet")
        copy = (*CLI, "copy", "--json", "--verify")
        return {
            "ingest": ingest(corpus, store, "--vector-field", "vector"),
            "out": measured(*copy, store, open_format),
            "back": measured(*copy, open_format, bench.fresh("back")),
        }

    yield f"vectors {count}", run


INT8 = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "avx2": "AVX2"}

PARTS: dict[str, Callable[[Bench], Units]] = {
    "scifact": scifact,
    "vectors": vectors,
    "chunk": chunk,
    "kills": kills,
    "rate": rate,
    "memory": memory,
    "document": document,
}


def int8_instructions() -> str:
    """What the processor multiplies int8 by: it decides how quick the encoder is."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return next((name for flag, name in INT8.items() if flag in flags), platform.machine())


def load(path: Path) -> Result:
    """What has been measured so far."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"))
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/bench/ingest"))
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "ingest.md")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="These parts alone.")
@click.option("--again", is_flag=True, help="Measure what has been measured once more.")
@click.option("--rows", multiple=True, type=int, default=(10_000, 100_000, 1_000_000))
@click.option("--records", default=200_000, help="With ready-made vectors.")
@click.option("--megabytes", default=50.0, help="Of the long document.")
@click.option("--kills", default=500, help="At random, of each store.")
def main(
    *,
    data: Path,
    work: Path,
    out: Path,
    only: tuple[str, ...],
    again: bool,
    rows: tuple[int, ...],
    records: int,
    megabytes: float,
    kills: int,
) -> None:
    """Measure, and write the page."""
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(data.resolve(), work.resolve(), rows, records, megabytes, kills)
    kept = out.with_suffix(".json")
    for part in only or PARTS:
        for name, measure in PARTS[part](bench):
            if name not in load(kept) or again:
                click.echo(f"measuring: {name}", err=True)
                today = datetime.now(timezone.utc).date().isoformat()
                result = measure() | {"date": today, "int8": int8_instructions()}
                kept.write_text(json.dumps(load(kept) | {name: result}, indent=1) + "\n")
    out.write_text(page(load(kept)), encoding="utf-8")


if __name__ == "__main__":
    main()
