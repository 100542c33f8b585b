"""What several commands share: options, output, and a Ctrl-C that lets work in hand finish."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from nexus_vdb.cli.pace import Pace
from nexus_vdb.errors import FilterError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

__all__ = [
    "LINE_SECONDS",
    "STORES",
    "as_json",
    "command_line",
    "config_option",
    "examples",
    "model_option",
    "note",
    "parse_where",
    "print_json",
    "progress_bar",
    "show",
    "stopping",
    "store_option",
]

LINE_SECONDS = 10.0
"""Between two lines of progress in a log."""

F = TypeVar("F", bound=Callable[..., Any])

STORES = "faiss://PATH, qdrant://HOST:PORT/COLLECTION or qdrant-edge://PATH"

store_option = click.option("--store", "url", metavar="URL", required=True, help=f"{STORES}.")
model_option = click.option(
    "--model", metavar="NAME|PATH", help="Model bundle; by default the one that is shipped."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="TOML file; options override its keys.",
)


def examples(*lines: str) -> str:
    """An epilog for `--help`, one line for each line."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def parse_where(text: str | None) -> dict[str, Any] | None:
    """A filter written as JSON.

    Raises:
        FilterError: it is not a JSON object.
    """
    if text is None:
        return None
    try:
        where = json.loads(text)
    except ValueError as error:
        raise FilterError(
            f"--where is no JSON: {error}",
            hint="""for example --where '{"year": {"$gte": 2020}}'""",
        ) from None
    if not isinstance(where, dict):
        raise FilterError(f"--where takes an object, not {text}")
    return where


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False))


def show(renderable: RenderableType, *, one_line: bool = False) -> None:
    """A rich table or text on standard output; cut to the terminal's width if it is one line."""
    from rich.console import Console

    console = Console()
    # By way of click: a pipe that is closed early is not to end the process from within rich.
    with console.capture() as drawn:
        overflow: Literal["ellipsis", "fold"] = "ellipsis" if one_line else "fold"
        console.print(renderable, no_wrap=one_line, overflow=overflow, highlight=False)
    click.echo(drawn.get(), nl=False)


def note(text: str) -> None:
    """A line for people, on standard error."""
    click.echo(text, err=True)


@contextmanager
def progress_bar(
    title: str, *, lines: bool = False
) -> Iterator[Callable[[int, int | None, str], None]]:
    """A bar on standard error, if that is a terminal: `update(done, total, note)`.

    Args:
        title: What is counted.
        lines: Where it is no terminal, write a plain line every ten seconds.
    """
    if not sys.stderr.isatty():
        yield _Lines(title) if lines else lambda done, total, note: None
        return
    with _bar() as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


class _Lines:
    """Progress for a log file."""

    def __init__(self, title: str) -> None:
        self._title, self._pace = title, Pace()
        self._last = time.monotonic()

    def __call__(self, done: int, total: int | None, text: str) -> None:
        left = self._pace.left(done, total or 0)
        now = time.monotonic()
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        of = f" of {total:,}, {left or '?'} left" if total else ""
        note(f"{self._title}: {done:,}{of}" + (f"; {text}" if text else ""))


def _bar() -> Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


@contextmanager
def stopping(say: Callable[[str], None] | None = None) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one ends the process as usual.

    Args:
        say: Told what happens; by default a line on standard error.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        for one, old in before.items():
            signal.signal(one, old)
        (say or _write)("finishing the batch in hand; a second signal stops at once")
        stop.set()

    before = {one: signal.signal(one, handle) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for one, old in before.items():
            signal.signal(one, old)


def _write(text: str) -> None:
    # Not by way of `sys.stderr`: the signal may have come in the middle of a write to it.
    os.write(2, f"{text}\n".encode())


def command_line() -> str:
    """The command that is running, to be copied into a shell."""
    words = click.get_current_context().find_root().obj
    return shlex.join(["nexus-vdb", *(words or sys.argv[1:])])
