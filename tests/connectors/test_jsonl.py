from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nexus_vdb.connectors import jsonl
from nexus_vdb.connectors.jsonl import JsonlSource
from nexus_vdb.corpus import FieldMap
from nexus_vdb.errors import SourceError
from nexus_vdb.interfaces import Source
from nexus_vdb.testing.source import BadRows, SourceContract, documents_of
from nexus_vdb.types import Document


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


class TestJsonlSource(SourceContract):
    def write(self, path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        file = path.with_suffix(".jsonl")
        file.write_bytes(_lines(rows))
        return file

    def open(self, paths: Sequence[Path], fields: FieldMap) -> Source:
        return JsonlSource([str(path) for path in paths], fields)


class TestGzippedJsonlSource(TestJsonlSource):
    """Each row is a gzip member of its own, as when logs are appended to."""

    def write(self, path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        file = path.with_suffix(".jsonl.gz")
        file.write_bytes(b"".join(gzip.compress(_lines([row])) for row in rows))
        return file


class TestZstdJsonlSource(TestJsonlSource):
    def write(self, path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        file = path.with_suffix(".jsonl.zst")
        file.write_bytes(pa.Codec("zstd").compress(_lines(rows), asbytes=True))
        return file


def _read(path: Path, content: bytes) -> tuple[list[Document], BadRows]:
    path.write_bytes(content)
    return documents_of(JsonlSource([str(path)]))


def test_byte_order_mark_crlf_and_blank_lines_are_tolerated(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"id": 1, "text": "one"}\r\n\r\n  \n{"id": 2, "text": "two"}'
    documents, bad = _read(tmp_path / "a.jsonl", content)
    assert [(d.id, d.text) for d in documents] == [("1", "one"), ("2", "two")]
    assert bad.rows == []


def test_broken_lines_are_told_with_row_offset_and_bytes(tmp_path: Path) -> None:
    lines = [
        b'{"id": "a", "text": "one"}',
        b'{"id": "b", "text": "tw',
        b"",
        b'{"id": "c", "text": "\xff"}',
        b"[1, 2]",
        b'{"id": "d", "text": "half \\ud83d"}',
        b"[" * 100_000,
        b'{"text": "no id"}',
        b'{"id": "e", "text": "\\ud83d\\ude00", "n": NaN, "m": 1e999, "k": 123456789012345678901}',
    ]
    documents, bad = _read(tmp_path / "a.jsonl", b"\n".join(lines))
    assert documents == [
        Document("a", "one"),
        Document("e", "😀", {"n": None, "m": None, "k": "123456789012345678901"}),
    ]
    reasons = [reason for _, _, reason in bad.rows]
    assert [row for _, row, _ in bad.rows] == [2, 4, 5, 6, 7, 8]
    assert reasons[0].startswith("broken JSON: Unterminated string")
    assert reasons[1] == "broken UTF-8 at byte 21"
    assert reasons[2:4] == ["not a JSON object", "half of a surrogate pair"]
    assert reasons[4].startswith("broken JSON: ")
    assert reasons[5] == "'id' is missing"
    assert bad.raws == [lines[row - 1] for _, row, _ in bad.rows]
    starts = [sum(len(line) + 1 for line in lines[:n]) for n in range(len(lines))]
    assert bad.offsets == [starts[row - 1] for _, row, _ in bad.rows]


def test_first_row_without_text_does_not_condemn_the_file(tmp_path: Path) -> None:
    rows = [{"id": "a"}, {"id": "b", "text": "two"}]
    documents, bad = _read(tmp_path / "a.jsonl", _lines(rows))
    assert [d.id for d in documents] == ["b"]
    assert [(row, reason) for _, row, reason in bad.rows] == [(1, "'text' is missing")]


def test_overlong_line_is_refused_and_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_LINE_LIMIT", 100)
    rows = [{"id": "a", "text": "x" * 1000}, {"id": "b", "text": "two"}]
    path = tmp_path / "a.jsonl"
    documents, bad = _read(path, _lines(rows))
    assert [d.id for d in documents] == ["b"]
    assert bad.rows == [(str(path), 1, "line longer than 100 bytes")]


@pytest.mark.parametrize("cut", [6, 1])
def test_truncated_gzip_gives_its_rows_and_then_counts_as_a_bad_one(
    tmp_path: Path, cut: int
) -> None:
    good = gzip.compress(_lines([{"id": "a", "text": "one"}, {"id": "b", "text": "two"}]))
    more = gzip.compress(_lines([{"id": "c", "text": "three"}]))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(good + more[: len(more) // cut - 1])
    documents, bad = documents_of(JsonlSource([str(path)]))
    assert [d.id for d in documents][:2] == ["a", "b"]
    [(file, row, reason)] = bad.rows
    assert (file, row) == (str(path), len(documents) + 1)
    assert reason.startswith(f"{path} cannot be read after row {len(documents)}: ")


def test_file_that_is_no_gzip_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz cannot be read: "):
        _read(tmp_path / "a.jsonl.gz", b'{"id": 1, "text": "plain"}\n')


def test_rows_are_estimated_for_progress(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_lines([{"id": str(n), "text": "x" * 200} for n in range(1000)]))
    source = JsonlSource([str(path), str(path)])
    assert source.size() is None
    assert source.estimate() == pytest.approx(2000, rel=0.02)
    assert JsonlSource([str(tmp_path / "a.jsonl.gz")]).estimate() is None
    assert JsonlSource([str(tmp_path / "none.jsonl")]).estimate() is None
    path.write_bytes(b"")
    assert source.estimate() == 0
