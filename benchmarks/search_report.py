"""The page and the picture of `benchmarks/search.py`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

GOAL = 0.95
"""Engines are compared at their quickest setting that finds this share of the exact top ten."""

OURS = "nexus faiss://"

_CODE = 8
"""Bytes of a code: mapped, and has to stay in memory where only some lists are scanned. Where all
are, the index has a copy of its own."""

Results = dict[str, Any]

INTRODUCTION = """\
# Search: recall, latency, build time, memory

Real texts (titles, abstracts, definitions, questions, documentation; of longer ones the first 200
characters) embedded once with the shipped model, 768 dimensions; the queries are 1,000 texts of the
same kinds that are not in the corpus. Every engine has the same vectors and queries. Made by

    python benchmarks/embed_texts.py runs/million TEXTS.parquet… --characters 200
    python benchmarks/search.py run runs/million --count 10000 --count 100000 --count 1000000
    python benchmarks/search.py report runs/million

- Two cores; engines are built with both and asked on one thread.
- A row is the engine's quickest setting that finds 95 % of the exact top ten (or its best, where
  none does). All settings are in the picture.
- p50 and p99 are wall times of one query at a time; "batch" is all queries in one call.
- "against exact" is the ratio of the p50 to that of FAISS's exact search over float32.
- Build is processor time of all threads, vectors given in one pass, until the index is on disk.
- Memory is what the process grew by: its own, without what malloc has free again, and pages of
  mapped files, which the system may drop.
- `faiss://` stores float16 vectors beside the codes, ids and (here empty) texts; the others store
  vectors and row numbers alone.

![Recall against latency](search.png)
"""

HEAD = (
    "| engine | setting | recall@10 | p50 ms | p99 ms | batch queries/s | against exact | "
    "build CPU s | memory B/vector: own, mapped | disk B/vector | open + first query s |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def counts_of(results: Results) -> list[int]:
    """Sizes that were measured."""
    return sorted({int(name.split()[-1]) for name in results if name.startswith("measure")})


def chosen(points: list[Results]) -> Results:
    """The quickest point that reaches the goal, else the one that comes nearest to it."""
    reached = [point for point in points if point["recall"] >= GOAL]
    if reached:
        return min(reached, key=lambda point: float(point["p50_ms"]))
    return max(points, key=lambda point: float(point["recall"]))


def p50_at_goal(points: list[Results]) -> float:
    """p50 in ms of the quickest point that reaches the goal; infinite where none does."""
    point = chosen(points)
    return float(point["p50_ms"]) if point["recall"] >= GOAL else math.inf


def row(engine: str, count: int, results: Results) -> str:
    """One line of a table."""
    built, asked = results[f"build {engine} {count}"], results[f"measure {engine} {count}"]
    exact = results.get(f"measure FAISS exact {count}")
    point = chosen(asked["points"])
    ratio = exact["points"][0]["p50_ms"] / point["p50_ms"] if exact else float("nan")
    setting = ", ".join(f"{key} {value}" for key, value in point["setting"].items())
    held = point.get("memory", asked.get("memory"))
    own, mapped = (max(0, held[kind]) / count for kind in ("own", "mapped"))
    return (
        f"| {engine} | {setting} | {point['recall']:.3f} | {point['p50_ms']:.2f} | "
        f"{point['p99_ms']:.2f} | {point['batch_per_second']:,.0f} | {ratio:.1f}× | "
        f"{built['cpu_seconds']:,.0f} | {own:,.0f}, {mapped:,.0f} | "
        f"{built['disk_bytes'] / count:,.0f} | {asked['open_seconds']:.2f} |"
    )


def per_vector(results: Results, engine: str) -> float:
    """Bytes of its own that a vector takes: by how much more they are at the next larger size."""
    few, many = counts_of(results)[-2:]
    points = (chosen(results[f"measure {engine} {count}"]["points"]) for count in (few, many))
    less, more = (point["memory"]["own"] for point in points)
    return float(max(0, more - less)) / (many - few)


def goals(results: Results, count: int) -> list[str]:
    """What the store is to reach at a size, beside what was measured."""
    names = (OURS, "FAISS exact", "FAISS HNSW")
    if any(f"measure {name} {count}" not in results for name in names):
        return []
    asked = {name: results[f"measure {name} {count}"] for name in names}
    built = {name: results[f"build {name} {count}"]["cpu_seconds"] for name in names}
    ours, exact, graph = names
    p50 = {name: p50_at_goal(asked[name]["points"]) for name in names}
    quicker, slower = p50[exact] / p50[ours], p50[ours] / p50[graph]
    build, opened = built[graph] / built[ours], asked[ours]["open_seconds"]
    whole = chosen(asked[ours]["points"])["setting"]["probes"] >= 1
    own = per_vector(results, ours) + (0 if whole else _CODE)
    lines = (
        ("p50 against FAISS exact", f"{quicker:.0f}× faster", "30×, aim 100×", quicker >= 30),
        ("p50 against FAISS HNSW", f"{slower:.1f}× its time", "within 5×, aim 1×", slower <= 5),
        ("build against FAISS HNSW", f"1/{build:.0f}", "1/20, aim 1/100", build >= 20),
        ("memory that has to stay, bytes a vector", f"{own:.0f}", "16, aim 9", own <= 16),
        ("open and answer, s", f"{opened:.2f}", "1, aim 0.2", opened <= 1),
    )
    rows = [
        f"| {what} | {found} | {goal} | {'met' if met else 'missed'} |"
        for what, found, goal, met in lines
    ]
    head = f"`faiss://` at recall@10 of {GOAL:.2f} or more, one thread"
    return ["", f"| {head} | measured | goal | |", "|---|---|---|---|", *rows]


def page(results: Results, engines: list[str]) -> str:
    """What was measured and how, then a table for each size; goals for the largest."""
    parts = [INTRODUCTION.rstrip()]
    for count in counts_of(results):
        there = [one for one in engines if f"measure {one} {count}" in results]
        lines = [row(one, count, results) for one in there]
        missing = [one for one in engines if one not in there]
        lines += ["", f"Not measured at this size: {', '.join(missing)}."] if missing else []
        lines += goals(results, count) if count == counts_of(results)[-1] else []
        parts.append("\n".join([f"## {count:,} vectors of 768", "", HEAD, *lines]))
    return "\n\n".join(parts) + "\n"


def picture(results: Results, engines: list[str], path: Path) -> None:
    """Recall against latency, one panel for each size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    counts = counts_of(results)
    figure, panels = plt.subplots(1, len(counts), figsize=(5.2 * len(counts), 4.6), squeeze=False)
    for count, panel in zip(counts, panels[0], strict=True):
        for number, engine in enumerate(engines):
            asked = results.get(f"measure {engine} {count}")
            if asked is None:
                continue
            points = sorted((point["recall"], point["p50_ms"]) for point in asked["points"])
            panel.plot(
                *zip(*points, strict=True), marker="o", ms=3.5, color=f"C{number}", label=engine
            )
        panel.set(title=f"{count:,} vectors", xlabel="recall@10", xlim=(0.7, 1.005), yscale="log")
        panel.grid(visible=True, which="both", alpha=0.2)
    panels[0][0].set_ylabel("p50 of one query on one thread, ms")
    panels[0][0].legend(fontsize=8)  # every engine is measured at the smallest size
    figure.tight_layout()
    figure.savefig(path, dpi=130)
