"""What one more worker gives, what it needs, and what the stages that cannot be shared out take.

    python benchmarks/scale_out.py CORPUS.jsonl --id-field _id --documents 1000
    python benchmarks/scale_out.py --points 20000,80000

The first starts a Ray on this machine for each number of workers, ingests the corpus into a new
FAISS store, and the same once more, unchanged. Rates are told by the clock, from the first batch to
the last, and per second of processor time, which other work on the machine disturbs little; memory
is the peak of a process. Then many short documents that are stored already run through one worker:
that is what reading, planning and Ray itself take of a document.

The second fills Qdrant's engine in a process of its own and tells what it holds in memory and on
disk for each record. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from nexus_vdb.collection import Collection
from nexus_vdb.pipelines import ray as engine
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.registry import open_store
from nexus_vdb.reports import IngestReport
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.testing.samples import sample_queries, sample_records
from nexus_vdb.types import SearchPlan, StoreSchema

MEGABYTE = 1 << 20
PART, SEARCHES, CANDIDATES = 3000, 50, 500
TOKENS, SHARED = 256, 32  # of a chunk: a large store has long ones
CHARACTERS = 814  # of such a chunk of SciFact


class Watch:
    """Looks at the processes of a run whenever something is done."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, int]] = []
        self.peaks: dict[str, int] = {}
        self.processor: dict[str, float] = {}
        self.shipped = 0
        self._before = processor_seconds(os.getpid())

    def __call__(self, report: IngestReport) -> None:
        """Meets `Progress`."""
        done = report.embedded + report.skipped
        if not self.moments or done > self.moments[-1][1]:
            self.moments.append((time.perf_counter(), done))
        for pid, role in roles():
            self.peaks[role] = max(self.peaks.get(role, 0), status(pid, "VmHWM"))
            before = self._before if role == "command" else 0.0
            self.processor[f"{role} {pid}"] = processor_seconds(pid) - before

    def rows(self, table: Any) -> Iterator[Any]:
        """Stands in for the reading of what comes back to the command."""
        self.shipped += table.nbytes
        yield from _rows(table)

    def rate(self) -> float:
        """Documents a second, without the start."""
        (first, before), (last, done) = self.moments[0], self.moments[-1]
        return (done - before) / max(last - first, 1e-9)

    def spent(self, role: str) -> float:
        """Processor seconds of all processes of a role."""
        return sum(spent for name, spent in self.processor.items() if name.startswith(role))


_rows = engine._rows


def roles() -> Iterator[tuple[int, str]]:
    """The processes that do the work."""
    yield os.getpid(), "command"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes().decode()
        except OSError:
            continue
        if name.startswith("ray::MapWorker"):
            yield int(path.parent.name), "worker"
        elif name.startswith("ray::MapBatches(read)"):
            yield int(path.parent.name), "reader"


def status(pid: int, name: str) -> int:
    """A line of the status of a process, in bytes; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(name)), 0)


def processor_seconds(pid: int) -> float:
    """Spent by a process so far; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(collection: Collection, settings: IngestSettings) -> tuple[IngestReport, Watch]:
    """An ingest that is watched."""
    watch = Watch()
    vars(engine)["_rows"] = watch.rows
    report = ingest(collection, settings, progress=watch)
    vars(engine)["_rows"] = _rows
    return report, watch


def embedding(corpus: Path, id_field: str, model: str | None, workers: tuple[int, ...]) -> str:
    """The table of a corpus that is embedded."""
    lines = [
        "| workers | documents/s | documents a worker's CPU s | records/s | a worker's peak MB "
        "| reader's | command's | bytes a record to the command | records/s of the one writer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for count in workers:
        with TemporaryDirectory() as folder:
            settings = IngestSettings(
                sources=[str(corpus)],
                id_field=id_field,
                chunk_tokens=TOKENS,
                chunk_overlap=SHARED,
                quarantine=None,
                engine="ray",
                workers=count,
            )
            with Collection(f"faiss://{folder}/index", model=model) as collection:
                report, watch = run(collection, settings)
        rate, per = watch.rate(), report.chunks / report.embedded
        peaks = (
            f"{watch.peaks.get(role, 0) / MEGABYTE:,.0f}"
            for role in ("worker", "reader", "command")
        )
        figures = (
            f"{rate:,.1f}",
            f"{report.embedded / watch.spent('worker'):,.1f}",
            f"{rate * per:,.1f}",
            *peaks,
            f"{watch.shipped / report.chunks:,.0f}",
            f"{report.chunks / report.writing:,.0f}",
        )
        lines.append(f"| {count} | {' | '.join(figures)} |")
    lines.append(f"\n{report.embedded:,} documents, {per:.2f} records each.")
    return "\n".join(lines)


def passing(count: int) -> str:
    """What a document costs that is stored already: reading, Ray, planning."""
    with TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.jsonl"
        with corpus.open("w", encoding="utf-8") as file:
            for number in range(count):
                text = f"Document number {number}. " + "It says what others say. " * 40
                file.write(json.dumps({"id": str(number), "text": text}) + "\n")
        given: dict[str, Any] = {"sources": [str(corpus)], "quarantine": None}
        url, encoder = f"faiss://{name}/index", FakeEncoder(64)
        with Collection(url, encoder=encoder) as collection:
            ingest(collection, IngestSettings(**given))
            vars(engine)["_FEW"] = 0  # in batches as large as those of a large cluster
            report, watch = run(collection, IngestSettings(**given, engine="ray", workers=1))
    costs = (
        f"{role} {1e6 * watch.spent(role) / report.read:,.0f}"
        for role in ("reader", "worker", "command")
    )
    return (
        f"{report.read:,} stored documents of a thousand characters, one worker: "
        f"{watch.rate():,.0f} documents/s; microseconds of processor time a document, "
        f"starts included: {', '.join(costs)}."
    )


def memory(points: list[int]) -> str:
    """What Qdrant's engine needs for a record, from stores of two sizes."""
    found = []
    for count in points:
        with TemporaryDirectory() as folder:
            url = f"qdrant-edge://{folder}/index"
            filling = fill(url, count)
            words = [sys.executable, __file__, "--held", url]
            told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            disk = sum(path.stat().st_blocks * 512 for path in Path(folder).rglob("*"))
            found.append({"count": count, "disk": disk, "fill": filling} | json.loads(told))
    first, last = found[0], found[-1]
    more = last["count"] - first["count"]
    each = {name: (last[name] - first[name]) / more for name in last if name != "count"}
    return (
        f"Qdrant's engine, a record more from {first['count']:,} to {last['count']:,}: "
        f"{each['own']:,.0f} bytes of memory of its own, {each['mapped']:,.0f} of mapped files "
        f"after {SEARCHES} searches, {each['disk']:,.0f} on disk; {1 / each['fill']:,.0f} are "
        f"written in a second of processor time; a search for {CANDIDATES} candidates takes "
        f"{1e9 * each['search']:,.1f} ns of it for each."
    )


def fill(url: str, count: int) -> float:
    """Make a store of made-up records; the processor seconds that it takes to write them."""
    store = open_store(url, StoreSchema(768, (256, 768)))
    spent = 0.0
    for start in range(0, count, PART):
        records = sample_records(min(PART, count - start), seed=start)
        # As long as a chunk of an abstract, and nothing that would compress to nothing.
        texts = [" ".join(float(value).hex() for value in row[:64]) for row in records.vectors]
        records = replace(records, texts=[text[:CHARACTERS] for text in texts])
        started = time.process_time()
        store.upsert(records)
        spent += time.process_time() - started
    store.set_meta("hash", "model")
    started = time.process_time()
    getattr(store, "optimize")()  # noqa: B009
    spent += time.process_time() - started
    store.close()
    return spent


def held(url: str) -> None:
    """Open a store, search it, and tell what that takes of memory."""
    before = {name: status(os.getpid(), name) for name in ("RssAnon", "RssFile")}
    store = open_store(url)
    plan = SearchPlan(10, CANDIDATES, (256, 768))
    for seed in range(SEARCHES):
        store.search(sample_queries(1, seed=seed), plan)
    own, mapped = (status(os.getpid(), name) - before[name] for name in before)
    started = time.process_time()
    for seed in range(SEARCHES):
        store.search(sample_queries(1, seed=seed), plan)
    spent = (time.process_time() - started) / SEARCHES
    print(json.dumps({"own": own, "mapped": mapped, "search": spent}))


@click.command()
@click.argument("corpus", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--id-field", default="id")
@click.option("--model", help="Bundle.")
@click.option("--documents", default=1000, show_default=True, help="Of the corpus.")
@click.option("--workers", default="1,2", show_default=True)
@click.option("--passing", "stored", default=20_000, show_default=True, help="Short documents.")
@click.option("--points", default="", help="Sizes of Qdrant stores; two of them.")
@click.option("--held", "url", hidden=True)
def main(
    *,
    corpus: Path | None,
    id_field: str,
    model: str | None,
    documents: int,
    workers: str,
    stored: int,
    points: str,
    url: str | None,
) -> None:
    """Print Markdown."""
    if url:
        held(url)
        return
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    day = datetime.now(timezone.utc).date()
    print(f"{day}, {os.cpu_count()} cores, load {load} before the start\n")
    if corpus is not None:
        with TemporaryDirectory() as folder, corpus.open("rb") as file:
            head = Path(folder) / "corpus.jsonl"
            head.write_bytes(b"".join(islice(file, documents)))
            counts = tuple(int(one) for one in workers.split(","))
            print(embedding(head, id_field, model, counts), flush=True)
        print("\n" + passing(stored), flush=True)
    if points:
        print("\n" + memory([int(one) for one in points.split(",")]))


if __name__ == "__main__":
    main()
