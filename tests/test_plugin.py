"""The plug-in of `examples/plugin`, installed in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pyarrow as pa
import pytest

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin"


def run(*command: str | Path, folder: Path) -> str:
    """What a command prints; its errors fail the test."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the plug-in, installed in `venv/` beside it, which sees this environment too."""
    folder = tmp_path_factory.mktemp("plugin") / "plugin"
    shutil.copytree(PLUGIN, folder)
    venv.create(folder / "venv", symlinks=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # `addsitedir`, and not the bare path: an editable install is a .pth file over there.
    here = sysconfig.get_path("purelib")
    (packages / "outside.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    pip = ("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run(folder / "venv/bin/python", *pip, str(folder), folder=folder)
    return folder


def nexus_vdb(plugin: Path, *arguments: str) -> str:
    """What the command line prints in that environment."""
    code = "from nexus_vdb.cli import main; main()"
    return run(plugin / "venv/bin/python", "-c", code, *arguments, folder=plugin)


def test_its_store_and_source_pass_the_contracts(plugin: Path) -> None:
    options = ("-q", "-W", "error", "-p", "no:asyncio", "-p", "no:cacheprovider")
    out = run(plugin / "venv/bin/python", "-m", "pytest", *options, "tests", folder=plugin)
    passed = re.search(r"(\d+) passed", out)
    assert passed and int(passed[1]) >= 110, out


def test_the_command_line_knows_its_url_and_its_files(plugin: Path) -> None:
    rows = [
        {"id": "statins", "text": "Statins lower cholesterol.", "year": 1987},
        {"id": "aspirin", "text": "Aspirin thins the blood.", "year": 1897},
        {"id": "cat", "text": "The cat sat on the mat.", "year": None},
    ]
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(plugin / "notes.arrow", table.schema) as writer:
        writer.write_table(table)
    ingest = ("ingest", "notes.arrow", "--store", "sqlite://notes.db", "--json")
    report = json.loads(nexus_vdb(plugin, *ingest))
    assert (report["read"], report["embedded"], report["quarantined"]) == (3, 3, 0)
    assert json.loads(nexus_vdb(plugin, *ingest))["skipped"] == 3

    search = ("search", "medicine", "--store", "sqlite://notes.db", "--json")
    found = json.loads(nexus_vdb(plugin, *search, "--where", '{"year": {"$gte": 1900}}'))
    assert [hit["document_id"] for hit in found["hits"]] == ["statins"]
    assert found["hits"][0]["metadata"] == {"year": 1987}
    everything = json.loads(nexus_vdb(plugin, *search))["hits"]
    assert {hit["document_id"] for hit in everything} == {"statins", "aspirin", "cat"}


def test_what_is_no_store_is_told(plugin: Path) -> None:
    (plugin / "other.db").write_text("no database at all " * 100)
    command = "from nexus_vdb import cli; print(cli.run(['info', '--store', 'sqlite://other.db']))"
    assert run(plugin / "venv/bin/python", "-c", command, folder=plugin).split() == ["3"]
