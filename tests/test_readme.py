"""Runs what the README shows, in its order, in a folder of its own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nexus_vdb import cli
from nexus_vdb.encoder import DEFAULT_BUNDLE, load_encoder
from nexus_vdb.errors import ModelError
from nexus_vdb.testing.encoder import FakeEncoder

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(
    r"^```(bash|console|python)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE
)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> str:
    """The shipped model, or a fake one where there is none."""
    try:
        return load_encoder().name
    except ModelError:
        monkeypatch.setattr("nexus_vdb.encoder.load_encoder", lambda name=None: FakeEncoder())
        return "fake"


def test_snippets_run(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(SNIPPETS) >= 6
    for language, code in SNIPPETS:
        if language == "python":
            exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
        else:
            for line in code.splitlines():
                _run(line.removeprefix("$ "))
    out = capsys.readouterr().out
    assert "statins" in out
    assert "both stores hold the same" in out
    if model == DEFAULT_BUNDLE:
        assert "smtplib" in out


def _run(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    assert program == "nexus-vdb"
    assert cli.run(words) == 0, line


def test_a_snippet_that_runs_offline_comes_early() -> None:
    assert "nexus-vdb demo\n" in "\n".join(TEXT.splitlines()[:30]) + "\n"


def test_every_command_and_file_it_names_is_there() -> None:
    for name in cli.COMMANDS:
        assert f"`{name}" in TEXT or f"nexus-vdb {name} " in TEXT, name
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target
