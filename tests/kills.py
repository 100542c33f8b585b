"""Ingests that are killed and started again, and the proof that nothing came of it.

One store is brought from version to version of a corpus: documents are added, changed, lengthened,
shortened, retitled, removed. On the way its process is killed at random moments and right before
random steps, again and again, also while it mends what the last kill left. After every kill a copy
of the store is read: each record is exactly that of the old version or of the new, and no document
that is in both is ever gone. In the end it equals a store that was never disturbed, record for
record and bit for bit, and no chunk was embedded that was stored already.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from nexus_vdb.errors import StoreNotFound
from nexus_vdb.registry import open_store
from nexus_vdb.types import Metadata

__all__ = ["SCHEMES", "Outcome", "Tally", "every_step", "random_kills", "versions"]

SCHEMES = {"faiss": "connectors.faiss", "qdrant-edge": "connectors.qdrant_edge"}

_OPTIONS = ["--chunk-tokens", "16", "--chunk-overlap", "4", "--delete-missing", "--max-delete", "1"]
_KILLED = -9
_KILLS_A_VERSION = 8

Corpus = dict[str, dict[str, Any]]


class Row(NamedTuple):
    """A record without its id; all of it has to be equal."""

    document_id: str
    ordinal: int
    text: str
    metadata: Metadata
    content_hash: str
    code: int
    vector: bytes


Rows = dict[str, Row]


@dataclass(frozen=True)
class Outcome:
    """How one process ended.

    Attributes:
        killed: It did not end by itself.
        seconds: It lived.
        steps: What it did to files and engine, in order; see `tests.kill_child`.
        embedded: Texts that it embedded.
    """

    killed: bool
    seconds: float
    steps: list[str]
    embedded: list[str]


@dataclass
class Tally:
    """What was tried, and held.

    Attributes:
        kills: Processes that were killed.
        runs: Processes altogether.
        versions: Times that a store was compared as a whole.
        rows: Records compared then.
        spared: Chunks that were stored when a process began, and were not embedded again.
        last_steps: The last thing that a killed process did.
    """

    kills: int = 0
    runs: int = 0
    versions: int = 0
    rows: int = 0
    spared: int = 0
    last_steps: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return (
            f"{self.kills:,} kills in {self.runs:,} runs, after {len(self.last_steps)} kinds of "
            f"steps; {self.versions:,} stores of {self.rows:,} records equal to those of a clean "
            f"run; {self.spared:,} stored chunks met, none embedded again"
        )


class Ingests:
    """Runs `nexus-vdb ingest` in processes that are forked from one with everything imported."""

    def __init__(self, folder: Path, scheme: str) -> None:
        self._files = {name: str(folder / name) for name in ("log", "out", "err")}
        self._scheme = scheme
        # One thread: a process with more forks badly, and there is little to compute.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kill_child.py"), SCHEMES[scheme]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(
        self, corpus: Path, store: Path, *, seconds: float | None = None, step: int | None = None
    ) -> Outcome:
        """Ingest a corpus; killed after some seconds, or right before a step."""
        log = Path(self._files["log"])
        log.unlink(missing_ok=True)
        words = ["ingest", str(corpus), "--store", f"{self._scheme}://{store}", *_OPTIONS]
        order = {"words": words, "folder": str(store), "seconds": seconds, "step": step}
        ended = self._ask(order | self._files)
        assert ended["code"] in (0, _KILLED), Path(self._files["err"]).read_text()
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return Outcome(
            killed=ended["code"] == _KILLED,
            seconds=ended["seconds"],
            steps=[line["step"] for line in lines if "step" in line],
            embedded=[text for line in lines for text in line.get("embedded", [])],
        )

    def read(self, store: Path) -> Rows:
        """All of a store, looked at in a copy: the next process meets what the last one left."""
        copy = store.with_name("copy")
        _copy(store, copy)
        try:
            opened = open_store(f"{self._scheme}://{copy}")
        except StoreNotFound:
            return {}
        try:
            return {
                id_: Row(*row)
                for records in opened.scan()
                for id_, *row in zip(
                    records.ids,
                    records.document_ids,
                    records.ordinals.tolist(),
                    records.texts,
                    records.metadata,
                    records.content_hashes,
                    records.codes.tolist(),
                    map(bytes, records.vectors),
                    strict=True,
                )
            }
        finally:
            opened.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer

    def __enter__(self) -> Ingests:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.communicate()


def _copy(folder: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    if folder.exists():
        subprocess.run(["cp", "-R", folder, to], check=True)  # `shutil` would fill holes


def versions(dice: random.Random, *, documents: int, sentences: int) -> Iterator[Corpus]:
    """Corpora without end, each made of the one before by every kind of change.

    Args:
        dice: Decide everything.
        documents: In each version.
        sentences: Of one document that is longer than all others.
    """
    corpus: Corpus = {}
    for number in range(1 << 30):
        corpus = {key: row for key, row in corpus.items() if dice.random() > 0.1}
        for key in corpus:
            if dice.random() < 0.3:
                corpus[key] = corpus[key] | _change(dice, key, number)
        for place in range(documents - len(corpus)):
            key = f"{number}/{place}"
            corpus[key] = {"id": key, "title": "", "year": 2000, "text": _text(dice, key)}
        corpus["long"] = {"id": "long", "text": _text(dice, f"long {number}", sentences)}
        yield corpus


def _change(dice: random.Random, key: str, number: int) -> dict[str, Any]:
    changes: list[dict[str, Any]] = [
        {"text": _text(dice, f"{key} again {number}")},
        {"text": _text(dice, f"{key} again {number}", 40)},
        {"title": f"Title {number}"},
        {"year": 2000 + number},
    ]
    return dice.choice(changes)


def _text(dice: random.Random, key: str, sentences: int | None = None) -> str:
    count = dice.randint(1, 9) if sentences is None else sentences
    return " ".join(f"This is sentence {place} of {key}." for place in range(count))


class Trial:
    """One store on its way through the versions of a corpus.

    Args:
        ingests: Who does the work.
        folder: For the store and everything else.
    """

    def __init__(self, ingests: Ingests, folder: Path) -> None:
        self._ingests = ingests
        self._corpus, self._store, self._clean, self._kept = (
            folder / name for name in ("corpus.jsonl", "store", "clean", "kept")
        )
        self._old: Rows = {}
        self._new: Rows = {}
        self._rows: Rows = {}
        self.tally = Tally()

    def begin(self, corpus: Corpus) -> Outcome:
        """Take the next version as the aim; how a clean run got there."""
        lines = "".join(json.dumps(row) + "\n" for row in corpus.values())
        self._corpus.write_text(lines, encoding="utf-8")
        shutil.rmtree(self._clean, ignore_errors=True)
        outcome = self._ingests.run(self._corpus, self._clean)
        self._old, self._new = self._new, self._ingests.read(self._clean)
        return outcome

    def run(self, *, seconds: float | None = None, step: int | None = None) -> Outcome:
        """Run once, to the end or not, and look at what is there then.

        Raises:
            AssertionError: a record is wrong or gone, or was embedded again.
        """
        stored = {row.text for id_, row in self._rows.items() if self._new.get(id_) == row}
        outcome = self._ingests.run(self._corpus, self._store, seconds=seconds, step=step)
        texts = {text.rpartition("\n")[2] for text in outcome.embedded}  # without the title
        again = sorted(texts & stored)
        assert not again, f"{len(again)} of {len(stored)} chunks embedded again: {again[:3]}"
        self._rows = self._ingests.read(self._store)
        self.tally.runs += 1
        self.tally.spared += len(stored)
        if outcome.killed:
            self.tally.kills += 1
            self.tally.last_steps[outcome.steps[-1] if outcome.steps else "start"] += 1
            self._check_between()
        else:
            self._check_end()
        return outcome

    def keep(self) -> None:
        """Remember the store as it is now."""
        _copy(self._store, self._kept)
        self._kept_rows = self._rows

    def restore(self) -> None:
        """Go back to what was kept."""
        _copy(self._kept, self._store)
        self._rows = self._kept_rows

    def _check_between(self) -> None:
        rows = self._rows
        strange = [row for id_, row in rows.items() if row not in self._versions(id_)]
        assert not strange, f"{len(strange)} records of neither version: {strange[:2]}"
        heads = {id_ for id_, row in self._old.items() if row.ordinal == 0} & self._new.keys()
        assert heads <= rows.keys(), f"{len(heads - rows.keys())} documents are gone"

    def _versions(self, id_: str) -> list[Row]:
        return [rows[id_] for rows in (self._old, self._new) if id_ in rows]

    def _check_end(self) -> None:
        assert self._rows.keys() == self._new.keys()
        assert self._rows == self._new
        self.tally.versions += 1
        self.tally.rows += len(self._rows)


def random_kills(
    scheme: str, folder: Path, *, seed: int, kills: int, documents: int = 100
) -> Iterator[Tally]:
    """Bring a store through versions of a corpus until its processes were killed so often.

    Yields the growing count after each version.

    Raises:
        AssertionError: a store was not what it had to be.
    """
    dice = random.Random(seed)
    with Ingests(folder, scheme) as ingests:
        trial = Trial(ingests, folder)
        for corpus in versions(dice, documents=documents, sentences=6 * documents):
            clean = trial.begin(corpus)
            for number in range(min(_KILLS_A_VERSION, kills - trial.tally.kills)):
                # What is left to do is less than the whole, and less with every kill.
                share = dice.random() * 0.85 ** (1 + number)
                if dice.random() < 0.5:
                    outcome = trial.run(seconds=share * clean.seconds)
                else:
                    outcome = trial.run(step=1 + int(share * len(clean.steps)))
                if not outcome.killed:
                    break
            else:
                trial.run()
            yield trial.tally
            if trial.tally.kills >= kills:
                return


def every_step(scheme: str, folder: Path, *, seed: int, kinds: bool = False) -> Iterator[Tally]:
    """Kill one and the same update right before each of its steps, and run it again.

    Args:
        scheme: Of the store.
        folder: For all files.
        seed: Of the corpus.
        kinds: Of the steps that follow the same one and precede the same one, try only the first.

    Yields the growing count after each step.

    Raises:
        AssertionError: a store was not what it had to be.
    """
    corpora = versions(random.Random(seed), documents=30, sentences=20)
    with Ingests(folder, scheme) as ingests:
        trial = Trial(ingests, folder)
        for _ in range(2):
            trial.begin(next(corpora))
            trial.run()
        trial.begin(next(corpora))
        trial.keep()
        steps = trial.run().steps
        for step in sorted(_kinds(steps) if kinds else range(1, len(steps) + 1)):
            trial.restore()
            assert trial.run(step=step).killed
            trial.run()
            yield trial.tally


def _kinds(steps: list[str]) -> Collection[int]:
    names = [re.sub(r"\d+", "", step) for step in steps]
    pairs = list(zip(["", *names], names, strict=False))
    return {pair: len(pairs) - place for place, pair in enumerate(reversed(pairs))}.values()
