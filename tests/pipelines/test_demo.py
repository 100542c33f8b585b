from __future__ import annotations

import inspect
import json
from pathlib import Path

from nexus_vdb.pipelines.demo import docstrings, write_corpus


def test_documentation_strings_of_this_python(tmp_path: Path) -> None:
    rows = {row["id"]: row for row in docstrings()}
    assert len(rows) > 1000
    assert rows["json.dumps"]["kind"] == "function"
    assert rows["json.dumps"]["module"] == "json"
    assert rows["json.dumps"]["text"] == inspect.getdoc(json.dumps)
    assert rows["tempfile.TemporaryDirectory"]["kind"] == "class"
    assert not any(part.startswith("_") for id_ in rows for part in id_.split("."))

    path = tmp_path / "corpus.jsonl"
    assert write_corpus(path, limit=100) == 100
    written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in written}) == 100
    assert {row["id"][0] for row in written} >= {"a", "t", "z"}
