"""`nexus-vdb`: one module for each command, imported when it is called for.

A command is added by a line in `COMMANDS` and a module with a click command named `command`.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from nexus_vdb.errors import NexusError

__all__ = ["COMMANDS", "main", "run"]

COMMANDS = {
    "demo": "nexus_vdb.cli.demo",
    "ingest": "nexus_vdb.cli.ingest",
    "search": "nexus_vdb.cli.search",
    "info": "nexus_vdb.cli.info",
    "verify": "nexus_vdb.cli.verify",
    "copy": "nexus_vdb.cli.copy",
    "delete": "nexus_vdb.cli.delete",
    "dedupe": "nexus_vdb.cli.dedupe",
    "eval": "nexus_vdb.cli.eval",
    "tokenizer": "nexus_vdb.cli.tokenizer",
    "pairs": "nexus_vdb.cli.pairs",
    "mine": "nexus_vdb.cli.mine",
    "train": "nexus_vdb.cli.train",
    "distill": "nexus_vdb.cli.distill",
    "export": "nexus_vdb.cli.export",
}

_FAILED, _INTERRUPTED = 3, 130


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(module).command
        return command


_EXAMPLES = """\b
See it work, without any data of your own:
  nexus-vdb demo
\b
Then with yours:
  nexus-vdb ingest "corpus/*.parquet" --store faiss://./index
  nexus-vdb search "which drugs lower blood pressure" --store faiss://./index
"""


@click.group(
    cls=_Group,
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="nexus-vdb", prog_name="nexus-vdb")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def _nexus_vdb(*, debug: bool) -> None:
    """Semantic search over your own files, offline: ingest a corpus, then ask it questions.

    Exit codes: 0 all well, 1 finished with bad rows or a failed check, 2 wrong usage, 3 could not
    run, 130 interrupted.
    """


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line; returns the exit code and prints no traceback but for --debug."""
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]
    try:
        with _nexus_vdb.make_context("nexus-vdb", list(words), obj=words) as context:
            code: Any = _nexus_vdb.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _say("interrupted", code=_INTERRUPTED)
    except BrokenPipeError:
        # The reader of the pipe has seen enough; nothing more is to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the last line of defence: no traceback for people
        if debug:
            traceback.print_exc()
        return _explain(error)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    if isinstance(error, NexusError):
        return _say(f"error: {error}", hint=error.hint, code=error.exit_code)
    message = f"error: {type(error).__name__}: {error}"
    return _say(message, hint="--debug shows the traceback", code=_FAILED)


def _say(message: str, *, hint: str = "", code: int) -> int:
    click.echo(" ".join(message.split()), err=True)
    if hint:
        click.echo(f"  try: {hint}", err=True)
    return code
