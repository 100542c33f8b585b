"""Processes that are made to be killed: `nexus-vdb ingest` with a deterministic model.

`tests.kills` writes one order a line to standard input. Each is carried out in a process forked
from this one, which has everything imported already, and answered by a line.

Each process keeps a log of its steps, and can be told to kill itself right before one of them. A
step is a file opened for writing, synced, renamed or removed, and a call that changes something in
the Qdrant engine, and the return from it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import nexus_vdb.encoder
from nexus_vdb.cli import run
from nexus_vdb.pipelines import _ingest_stages
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.types import QueryBatch

USED = ("cli.ingest", "pipelines.ingest", "connectors.jsonl", "connectors.faiss")
DIM, CUTS = 32, (16, 32)

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
_READS = {"scroll", "retrieve", "count", "info", "query_batch"}
_PATIENCE = 0.0005  # seconds between looks at a process that has some time to live


class Log:
    """Lines of JSON that outlive the process; kills it before step number `last`, if any."""

    def __init__(self, path: str, last: int | None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._numbers = itertools.count(1)
        self._last = last

    def step(self, name: str) -> None:
        """About to do this, unless it is the last."""
        last = next(self._numbers) == self._last
        self.write({"step": name})
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, line: dict[str, Any]) -> None:
        """One line, in one call of the system."""
        os.write(self._file, json.dumps(line).encode() + b"\n")


class LoggedEncoder(FakeEncoder):
    """Writes down what it embeds."""

    def __init__(self, log: Log) -> None:
        super().__init__(DIM, CUTS)
        self._log = log

    def encode(self, texts: Sequence[str]) -> QueryBatch:
        """Embed, and say so."""
        self._log.write({"embedded": list(texts)})
        return super().encode(texts)


class LoggedShard:
    """An engine's shard; a call that changes it is two steps: before and after."""

    def __init__(self, make: Callable[..., Any], log: Log) -> None:
        self._make, self._log = make, log

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._make, name)
        return value if name in _READS else self._logged(value, name)

    def _logged(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*values: Any, **options: Any) -> Any:
            self._log.step(f"engine {name}")
            result = method(*values, **options)
            self._log.step(f"engine {name} done")
            return LoggedShard(result, self._log) if name in ("create", "load") else result

        return call


def watch(log: Log, folder: str) -> None:
    """Make a step of everything that changes a file."""

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event in _CHANGES:
            log.step(f"{event} {os.path.basename(str(values[0]))}")  # noqa: PTH119
        elif event == "open" and str(values[0]).startswith(folder) and values[2] & os.O_ACCMODE:
            log.step(f"open {os.path.basename(values[0])}")  # noqa: PTH119

    def sync(fd: Any, *, real: Callable[[Any], None] = os.fsync) -> None:
        log.step("fsync")
        real(fd)

    os.fsync = sync
    sys.addaudithook(hook)


def ingest(order: dict[str, Any]) -> int:
    """What a child does."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    log = Log(order["log"], order["step"])
    vars(nexus_vdb.encoder)["load_encoder"] = lambda *_, **__: LoggedEncoder(log)
    if engine := sys.modules.get("qdrant_edge"):
        vars(engine)["EdgeShard"] = LoggedShard(engine.EdgeShard, log)
    watch(log, order["folder"])
    code = run(order["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def outcome(order: dict[str, Any]) -> dict[str, Any]:
    """Start a child, kill it once its time is over, and say how it ended."""
    started = time.monotonic()
    child = os.fork()
    if not child:
        code = 70
        try:
            code = ingest(order)
        finally:
            os._exit(code)
    end = started + (order["seconds"] or float("inf"))
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(_PATIENCE)
    code = os.waitstatus_to_exitcode(ended[1])
    return {"code": code, "seconds": time.monotonic() - started}


def main() -> None:
    """Serve until the input ends."""
    for name in (*USED, *sys.argv[1:]):
        importlib.import_module(f"nexus_vdb.{name}")
    with contextlib.suppress(ImportError):
        importlib.import_module("pandas")  # pyarrow does so when it first makes Python objects
    vars(_ingest_stages)["PART"] = 512  # a corpus takes more than one
    _ingest_stages._HELD_SECONDS = 0  # the same steps each time, whatever the machine's speed
    FakeEncoder(DIM, CUTS).encode(["its tables are made once"])
    for line in sys.stdin:
        print(json.dumps(outcome(json.loads(line))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
