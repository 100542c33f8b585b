from __future__ import annotations

import base64
import json
import os
import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_vdb import idset
from nexus_vdb.corpus import FieldMap, IdSet, json_value, open_corpus
from nexus_vdb.errors import ConfigError, SourceError
from nexus_vdb.filesystems import find_files
from nexus_vdb.testing.source import BadRows, documents_of


def _jsonl(path: Path, *ids: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": id_, "text": f"text {id_}"}) + "\n" for id_ in ids))
    return path


def _parquet(path: Path, *ids: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, "text": [f"text {id_}" for id_ in ids]}), path)
    return path


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files of both kinds, and some that are none of ours."""
    monkeypatch.chdir(tmp_path)
    _jsonl(tmp_path / "corpus/b.jsonl", "1", "2")
    _parquet(tmp_path / "corpus/a.parquet", "3", "4")
    _jsonl(tmp_path / "corpus/deep/er/c.NDJSON", "5")
    _jsonl(tmp_path / "corpus/.hidden/d.jsonl", "6")
    _jsonl(tmp_path / "corpus/_staged/e.jsonl", "7")
    (tmp_path / "corpus/README.md").write_text("no rows")
    (tmp_path / "empty").mkdir()
    return tmp_path


def _names(*specs: str | os.PathLike[str]) -> list[str]:
    return [file.path for file in find_files(specs)]


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("corpus/b.jsonl", ["corpus/b.jsonl"]),
        ("./corpus/b.jsonl", ["corpus/b.jsonl"]),
        ("corpus", ["corpus/a.parquet", "corpus/b.jsonl", "corpus/deep/er/c.NDJSON"]),
        ("corpus/", ["corpus/a.parquet", "corpus/b.jsonl", "corpus/deep/er/c.NDJSON"]),
        ("corpus/*.jsonl", ["corpus/b.jsonl"]),
        ("corpus/?.parquet", ["corpus/a.parquet"]),
        ("corpus/[ab].*", ["corpus/a.parquet", "corpus/b.jsonl"]),
        (
            "corpus/*",
            [
                "corpus/_staged/e.jsonl",
                "corpus/a.parquet",
                "corpus/b.jsonl",
                "corpus/deep/er/c.NDJSON",
            ],
        ),
        ("**/c.NDJSON", ["corpus/deep/er/c.NDJSON"]),
        ("corpus/**/*.jsonl", ["corpus/_staged/e.jsonl", "corpus/b.jsonl"]),
        ("c*/*/er/*", ["corpus/deep/er/c.NDJSON"]),
        ("corpus/.hidden/*.jsonl", ["corpus/.hidden/d.jsonl"]),
    ],
)
@pytest.mark.usefixtures("tree")
def test_files_of_a_spec(spec: str, names: list[str]) -> None:
    assert _names(spec) == names


def test_files_are_sorted_and_come_once(tree: Path) -> None:
    specs: list[str | Path] = [
        tree / "corpus/b.jsonl",
        "corpus/*.jsonl",
        "corpus",
        f"file://{tree}/corpus",
    ]
    found = [Path(name).resolve() for name in _names(*specs)]
    expected = ["a.parquet", "b.jsonl", "deep/er/c.NDJSON"]
    assert found == [(tree / "corpus" / name).resolve() for name in expected]


def test_file_with_wildcards_in_its_name(tree: Path) -> None:
    _jsonl(tree / "x[1].jsonl", "1")
    assert _names("x[1].jsonl") == ["x[1].jsonl"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing.jsonl", "no such file or folder: nothing.jsonl"),
        ("corpus/*.csv", "corpus/*.csv names no file of a known kind"),
        ("nowhere/*.jsonl", "nowhere/*.jsonl names no file of a known kind"),
        ("empty", "empty names no file of a known kind"),
        ("s3:/x", "s3:/x cannot be read: "),
        ("nosuchscheme://x/y", "nosuchscheme://x/y cannot be read: "),
    ],
)
@pytest.mark.usefixtures("tree")
def test_spec_that_names_nothing(spec: str, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_corpus(spec)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("tree")
def test_file_of_an_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="no source for 'corpus/README.md'"):
        open_corpus("corpus/README.md")


@pytest.mark.usefixtures("tree")
def test_corpus_chains_its_files_in_order() -> None:
    documents, bad = documents_of(open_corpus("corpus"))
    assert [document.id for document in documents] == ["3", "4", "1", "2", "5"]
    assert bad.rows == []
    assert open_corpus("corpus").size() is None
    assert open_corpus("corpus/*.parquet").size() == 2


def test_ids_are_unique_over_kinds(tree: Path) -> None:
    _jsonl(tree / "corpus/b.jsonl", "1", "3")
    documents, bad = documents_of(open_corpus("corpus"))
    assert [document.id for document in documents] == ["3", "4", "1", "5"]
    assert bad.rows == [("corpus/b.jsonl", 2, "duplicate id '3'")]


def test_urls_of_fsspec(tree: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a.parquet", "b.jsonl"):
        memory.pipe(f"/bucket/in/{name}", (tree / "corpus" / name).read_bytes())
    memory.pipe("/bucket/in/z.jsonl", b"no JSON\n")
    for spec in ("memory://bucket/in", "memory://bucket/in/*"):
        documents, bad = documents_of(open_corpus(spec))
        assert [document.id for document in documents] == ["3", "4", "1", "2"]
        assert [(file, row) for file, row, _ in bad.rows] == [("memory://bucket/in/z.jsonl", 1)]
    with pytest.raises(SourceError, match="no such file or folder: memory://bucket/none"):
        open_corpus("memory://bucket/none")


def test_vectors_need_a_field(tree: Path) -> None:
    corpus = open_corpus(tree / "corpus")
    with pytest.raises(ConfigError, match="holds vectors"):
        next(corpus.read_with_vectors(batch_size=1, on_bad_row=BadRows()))
    absent = open_corpus(tree / "corpus", FieldMap(vector="v"))
    with pytest.raises(SourceError, match="has no field 'v'; it has: id, text"):
        next(absent.read_with_vectors(batch_size=1, on_bad_row=BadRows()))


def test_long_documents_come_in_short_batches(tmp_path: Path) -> None:
    rows = [{"id": n, "text": "x" * 1_500_000} for n in range(5)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batches = list(open_corpus(path).read(batch_size=100, on_bad_row=BadRows()))
    assert [len(batch) for batch in batches] == [3, 2]


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=1))))
def test_id_set_tells_new_from_seen(batches: list[list[str]]) -> None:
    with mock.patch.object(idset, "_LATEST", 3):  # so that there are many sorted runs
        table, reference = IdSet(), set[str]()
        for keys in batches:
            assert table.has(keys) == [key in reference for key in keys]
            firsts = [key not in reference and key not in keys[:at] for at, key in enumerate(keys)]
            assert table.add_all(keys) == firsts
            reference |= set(keys)
            assert len(table) == len(reference)


def test_id_set_grows() -> None:
    table, keys = IdSet(), [str(n) for n in range(200_000)]
    assert all(table.add_all(keys))
    assert not any(table.add_all(keys))
    assert table.add("new")
    assert not table.add("7")
    assert "7" in table
    assert "other" not in table


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (2**63 - 1, 2**63 - 1),
        (2**63, str(2**63)),
        (10**20, 1e20),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (10**400, str(10**400)),
        (0.1, 0.1),
        (float("-inf"), None),
        (Decimal("NaN"), None),
        (Decimal("1E+3"), 1000.0),
        (Decimal("3.00"), 3.0),
        (Decimal("0.30000000000000004441"), "0.30000000000000004441"),
        (date(2024, 2, 29), "2024-02-29"),
        (datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=-5))), "2024-02-29T00:00:00-05:00"),
        (time(1, 2, 3), "01:02:03"),
        (timedelta(days=1, microseconds=1), 86400.000001),
        (b"\xfb\xff", base64.b64encode(b"\xfb\xff").decode()),
        (np.float32(0.5), 0.5),
        (np.array([[1, 2]]), [[1, 2]]),
        ((1, (None,)), [1, [None]]),
        ({1: {True: b""}, None: 0}, {"1": {"true": ""}, "null": 0}),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_json_value(value: Any, expected: Any) -> None:
    found = json_value(value)
    assert found == expected
    assert type(found) is type(expected)
