"""`info --check`, and what `copy` makes of a damaged store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nexus_vdb import cli
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.testing.store import sample_records
from nexus_vdb.types import StoreSchema


class Shell:
    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.store = f"faiss://{folder}"
        self._capture = capture

    def run(self, *words: object) -> tuple[int, str, str]:
        code = cli.run([str(word) for word in words])
        captured = self._capture.readouterr()
        return code, captured.out, captured.err

    def damage(self, name: str) -> Path:
        """Change a byte in the middle of a file of the first segment."""
        path = self.folder / "segments" / "00000002" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        return path


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    with_segments = FaissStore.open(f"faiss://{tmp_path}/index", StoreSchema(dim=96, cuts=(32, 96)))
    with_segments.upsert(sample_records(600, dim=96))
    with_segments.upsert(sample_records(40, seed=1, dim=96))
    with_segments.close()
    return Shell(tmp_path / "index", capsys)


def test_a_whole_store(shell: Shell) -> None:
    code, out, err = shell.run("info", "--store", shell.store, "--check")
    assert (code, err) == (0, "")
    assert out.endswith("checked: all is as it was written\n")
    assert "640" in out
    code, out, _ = shell.run("info", "--store", shell.store, "--check", "--json")
    facts = json.loads(out)
    assert (code, facts["count"], facts["damage"]) == (0, 640, [])


def test_a_damaged_file_is_named(shell: Shell) -> None:
    paths = [shell.damage("vectors.f16"), shell.damage("lookup.bin")]
    code, out, err = shell.run("info", "--store", shell.store, "--check")
    assert code == 1
    assert [str(path) in out for path in paths] == [True, True]
    assert f'nexus-vdb copy "{shell.store}?rescue" NEW_URL' in err
    assert "640" in out  # the rest can be told: nothing that was read is damaged
    code, out, err = shell.run("info", "--store", shell.store, "--check", "--json")
    facts = json.loads(out)
    assert (code, facts["count"], len(facts["damage"])) == (1, 640, 2)


def test_a_store_that_cannot_be_opened(shell: Shell) -> None:
    path = shell.folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])
    code, out, err = shell.run("info", "--store", shell.store)
    assert (code, out) == (3, "")
    assert "manifest.json is damaged" in err
    code, out, _ = shell.run("info", "--store", shell.store, "--check", "--json")
    found = json.loads(out)
    assert (code, found["url"]) == (1, shell.store)
    assert [str(path) in line for line in found["damage"]] == [True]


def test_what_is_whole_is_copied_and_what_is_lost_is_told(shell: Shell, tmp_path: Path) -> None:
    path = shell.damage("vectors.f16")
    target = f"faiss://{tmp_path}/saved"
    code, out, err = shell.run("copy", shell.store, target)
    assert code == 3
    assert "vectors.f16 is damaged" in err
    code, out, err = shell.run("copy", f"{shell.store}?rescue", target)
    assert code == 1
    # A page of 4096 bytes holds 21 rows of 192 bytes, and parts of two more at most.
    lost = 640 - FaissStore.open(target).count()
    assert 21 <= lost <= 23
    assert f"{path.parent} has damaged pages: {lost} records are lost" in err
    assert f"{640 - lost} records copied" in out
    code, _, err = shell.run(
        "delete", "--where", '{"lang": "en"}', "--store", f"{shell.store}?rescue"
    )
    assert code == 3
    assert "read only" in err


def test_stores_without_checksums_say_so(shell: Shell) -> None:
    code, out, err = shell.run("info", "--store", "memory://x", "--check")
    assert (code, out) == (2, "")
    assert "MemoryStore keeps no checksums" in err
    code, _, err = shell.run("info", "--store", f"faiss://{shell.folder}-not", "--check")
    assert code == 3
    assert "nothing is stored" in err
