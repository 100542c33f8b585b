"""The page of `benchmarks/ingest.py`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import Any

Result = dict[str, Any]

COMMAND = "python benchmarks/ingest.py --only"
LEAST_RATE, LEAST_RATIO, MOST_MEMORY, MOST_SECOND = 20_000, 0.95, 1500, 0.1


def page(results: Result) -> str:
    """Every part that has been measured, as Markdown."""
    head = [
        "# Ingest: what it takes and what it survives",
        "",
        f"Made by `python benchmarks/ingest.py` on a machine with {os.cpu_count()} "
        f"{platform.machine()} cores, Python {platform.python_version()}; every command in a "
        "process of its own. Memory is the peak of the whole process as the kernel counts it, "
        "mapped files included. Each part says the command that repeats it, the date, and what "
        "the processor multiplies int8 by: with AMX the encoder is two to three times as quick as "
        "with AVX2, and all else weighs more beside it. Parts of before 2026-11-30 are of chunks "
        "of up to 256 tokens, the default then; it is 192 since.",
    ]
    parts = [kills, scifact, memory, rate, vectors, document]
    sections = ["\n".join(["", *lines]) for part in parts if (lines := list(part(results)))]
    return "\n".join([*head, *sections]) + "\n"


def named(results: Result, kind: str) -> list[tuple[str, Result]]:
    """Results of a kind, the smallest first: `memory jsonl` of `memory jsonl 10000`."""
    found = [name for name in results if name.rpartition(" ")[0] == kind or name == kind]
    return [(name, results[name]) for name in sorted(found, key=_size)]


def _size(name: str) -> float:
    last = name.rpartition(" ")[2]
    return float(last) if last.replace(".", "").isdigit() else 0.0


def title(text: str, part: str, *results: Result) -> list[str]:
    """A heading, and where the figures below it come from."""
    days = sorted({", ".join([one["date"], *filter(None, [one.get("int8")])]) for one in results})
    return [f"## {text}", "", f"`{COMMAND} {part} --again`, {' and '.join(days)}", ""]


def verdict(value: float, goal: float, *, least: bool) -> str:
    """Whether a goal was met, and by how much if not."""
    if (value >= goal) if least else (value <= goal):
        return "met"
    return f"missed by {abs(value / goal - 1):.0%}"


def kills(results: Result) -> Iterator[str]:
    """How often a process was killed, and what came of it."""
    for _, result in named(results, "kills")[-1:]:
        yield from title("Killed and started again", "kills", result)
        yield (
            "A process is killed by SIGKILL while it brings a store from one version of a corpus "
            "to the next, and started again, also while it recovers; then the store is compared "
            "with that of an undisturbed run, every column bit for bit, vectors too. After every "
            "kill each record was that of the old version or of the new, and no document of both "
            "was missing. `make soak` runs the same for as long as one likes."
        )
        yield from (
            "",
            "| store | killed | kills | stores equal | records compared | stored chunks "
            "met by a run | embedded again | minutes |",
            "|---|---|---|---|---|---|---|---|",
        )
        for one in result["told"]:
            yield (
                f"| `{one['store']}://` | {MOMENTS[one['moments']]} | {one['kills']:,} "
                f"| {one['versions']:,} of {one['versions']:,} | {one['rows']:,} "
                f"| {one['spared']:,} | 0 | {one['seconds'] / 60:.1f} |"
            )


MOMENTS = {
    "every step": "right before each step of an update",
    "random": "at random moments and steps",
}


def scifact(results: Result) -> Iterator[str]:
    """A second run over the same corpus, and a verification."""
    for _, result in named(results, "scifact"):
        first, second, verify = (result[name] for name in ("first", "second", "verify"))
        share = second["wall"] / first["wall"]
        yield from title("The same corpus again, and verified (SciFact)", "scifact", result)
        yield from (
            "| command | documents | embedded | wall s | of the first |",
            "|---|---|---|---|---|",
        )
        for name, run in (("first", first), ("second", second)):
            told = run["told"]
            yield (
                f"| `nexus-vdb ingest`, {name} run | {told['read']:,} | {told['embedded']:,} "
                f"| {run['wall']:.1f} | {run['wall'] / first['wall']:.1%} |"
            )
        told = verify["told"]
        yield (
            f"| `nexus-vdb verify` | {told['checked']:,} | 0 | {verify['wall']:.1f} "
            f"| {verify['wall'] / first['wall']:.1%} |"
        )
        yield from (
            "",
            f"Goal: a second run embeds 0 and takes less than {MOST_SECOND:.0%} of the "
            f"first, start of the process included: {verdict(share, MOST_SECOND, least=False)}.",
        )


def memory(results: Result) -> Iterator[str]:
    """Peak memory by size and format."""
    model = results.get("memory model")
    rows = [
        (kind, *one) for kind in ("parquet", "jsonl") for one in named(results, f"memory {kind}")
    ]
    if model is None or not rows:
        return
    yield from title(
        "Memory does not grow with the corpus", "memory", model, *(run for _, _, run in rows)
    )
    yield (
        "Short real texts (titles, questions, first words of passages), embedded by the shipped "
        f"model into `faiss://`. The process with the model loaded, after one batch: "
        f"{model['peak_mb']:,} MB."
    )
    yield from (
        "",
        "| rows | from | peak MB | of which no mapped file | beyond the model |",
        "|---|---|---|---|---|",
    )
    for kind, _, run in sorted(rows, key=lambda row: _size(row[1])):
        told, more = run["told"], run["peak_mb"] - model["peak_mb"]
        yield (
            f"| {told['read']:,} | {kind} | {run['peak_mb']:,} | {run.get('own_mb', 0):,} "
            f"| {more:,} |"
        )
    most = max(run["peak_mb"] for _, _, run in rows)
    yield from (
        "",
        f"Goal: under {MOST_MEMORY:,} MB at any size: {verdict(most, MOST_MEMORY, least=False)}.",
    )


def rate(results: Result) -> Iterator[str]:
    """A whole ingest beside its encoder."""
    found = named(results, "rate")
    if not found:
        return
    yield from title("The encoder is what takes time", "rate", *(one for _, one in found))
    yield (
        "The encoder alone and a whole ingest in turn on the same chunks, in up to three rounds; "
        "the median ratio counts, the rates are those of the last. Abstracts are what "
        "most corpora are like. Of questions of a dozen tokens the encoder makes so many a second "
        "that the end weighs most, when the store is tidied up, its hash chosen and its recall "
        "measured: two seconds at 33,000 chunks, three and a half at 100,000. `short-` are titles, "
        "questions and first words of passages."
    )
    yield from (
        "",
        "| corpus | chunks | encoder, chunks/s | ingest, chunks/s | ratio | goal |",
        "|---|---|---|---|---|---|",
    )
    for name, result in found:
        told = result["told"]
        goal = verdict(told["ratio"], LEAST_RATIO, least=True)
        yield (
            f"| {name.removeprefix('rate ')} | {told['chunks']:,} "
            f"| {told['chunks'] / told['alone']:,.0f} | {told['chunks'] / told['whole']:,.0f} "
            f"| {told['ratio']:.1%} | {LEAST_RATIO:.0%}: {goal} |"
        )


def vectors(results: Result) -> Iterator[str]:
    """Ready-made vectors, and copies, of some records and of many."""
    found = [result for _, result in named(results, "vectors")]
    if not found:
        return
    yield from title("Ready-made vectors, and a way out", "vectors --records N", found[-1])
    yield from (
        "| command | records | wall s | records/s | goal | peak MB |",
        "|---|---|---|---|---|---|",
    )
    for result in found:
        for name, text, count in (
            ("ingest", "`ingest --vector-field`, Parquet to `faiss://`", "read"),
            ("out", "`copy --verify`, `faiss://` to `parquet://`", "copied"),
            ("back", "`copy --verify`, `parquet://` to `faiss://`", "copied"),
        ):
            run = result[name]
            told = run["told"]
            speed = told[count] / told["seconds"]
            yield (
                f"| {text} | {told[count]:,} | {told['seconds']:.1f} | {speed:,.0f} "
                f"| {LEAST_RATE:,}: {verdict(speed, LEAST_RATE, least=True)} | {run['peak_mb']:,} |"
            )
    tolds = [result["ingest"]["told"] for result in found]
    ends = " and ".join(
        f"{told['finishing']:.1f} s of the ingest of {told['read']:,}" for told in tolds
    )
    told = tolds[-1]
    stored = told["read"] / (told["seconds"] - told["finishing"])
    yield (
        f"\n768 float32 numbers a record; seconds are the job's own, without the start of the "
        f"process. {ends} come after the last record, when the store is tidied up, its hash chosen "
        f"and its recall measured: the records of the largest are read, compared with what is "
        f"stored, and written at {stored:,.0f} a second."
    )


def document(results: Result) -> Iterator[str]:
    """One very long document."""
    cuts = named(results, "chunk")[-1:]
    for name, result in cuts:
        told = result["told"]
        yield from title("One very long document", "chunk --only document", result)
        yield (
            f"{told['megabytes']} MB of prose as a single document: {told['chunks']:,} chunks in "
            f"{told['seconds']:.1f} s, none of more than {told['most_tokens']} tokens, each an "
            f"exact slice; peak {result['peak_mb']:,} MB with the model and the document itself."
        )
        size = name.rpartition(" ")[2]
        if whole := results.get(f"document {size}"):
            yield ""
            yield (
                f"A whole `nexus-vdb ingest` of it: {whole['told']['chunks']:,} records in "
                f"{whole['wall']:,.0f} s, peak {whole['peak_mb']:,} MB."
            )
