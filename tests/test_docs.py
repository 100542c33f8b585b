"""The site builds without warnings, and what its pages tell people to type exists."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """The words of each `nexus-vdb` command of a page."""
    shell = "".join(text for kind, text in blocks(page) if kind in ("bash", "shell"))
    lines = shell.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("nexus-vdb ")]


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "SearchPlan" in (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_parses(page: Path) -> None:
    for name, *words in commands(page):
        command: click.Command = importlib.import_module(f"nexus_vdb.cli.{name}").command
        command.make_context(name, words)


def test_wrong_options_are_found() -> None:
    command: click.Command = importlib.import_module("nexus_vdb.cli.ingest").command
    with pytest.raises(click.UsageError):
        command.make_context("ingest", ["corpus.jsonl", "--stoer", "memory://"])
    assert ["demo"] in commands(ROOT / "docs" / "index.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_of_a_page_compiles_and_imports_what_exists(page: Path) -> None:
    for kind, text in blocks(page):
        if kind == "python":
            compile(text, page.name, "exec")
            for line in re.findall(r"^from (nexus_vdb[\w.]*) import ([\w, ]+)$", text, re.M):
                module = importlib.import_module(line[0])
                assert [name for name in line[1].split(", ") if not hasattr(module, name)] == []
