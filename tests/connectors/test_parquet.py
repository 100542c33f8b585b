from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_vdb.connectors.parquet import ParquetSource
from nexus_vdb.corpus import FieldMap, RowFile
from nexus_vdb.errors import SourceError
from nexus_vdb.interfaces import Source
from nexus_vdb.row_reader import RowReader
from nexus_vdb.testing.source import BadRows, SourceContract, documents_of
from nexus_vdb.types import Document


class TestParquetSource(SourceContract):
    def write(self, path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        file = path.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist(list(rows)), file, row_group_size=2)
        return file

    def open(self, paths: Sequence[Path], fields: FieldMap) -> Source:
        return ParquetSource([str(path) for path in paths], fields)


def _write(path: Path, columns: dict[str, Any]) -> Path:
    length = max(len(column) for column in columns.values())
    named = {"id": [str(n) for n in range(length)], "text": ["text"] * length}
    pq.write_table(pa.table(named | columns), path)
    return path


def _metadata(path: Path, columns: dict[str, Any]) -> list[dict[str, Any]]:
    documents, bad = documents_of(ParquetSource([str(_write(path, columns))]))
    assert bad.rows == []
    return [document.metadata for document in documents]


def test_every_type_becomes_a_json_value(tmp_path: Path) -> None:
    berlin = pa.timestamp("us", "Europe/Berlin")
    instant = datetime(2024, 5, 31, 10, 0, 0, 123456, tzinfo=timezone.utc)
    nested = pa.list_(pa.struct([("at", pa.timestamp("ns")), ("d", pa.decimal128(9, 2))]))
    columns = {
        "stamp": pa.array([instant], berlin),
        "naive": pa.array([datetime(2024, 5, 31)], pa.timestamp("s")),
        "nanos": pa.array([1_717_149_600_123_456_789], pa.timestamp("ns", "UTC")),
        "date": pa.array([date(2024, 5, 31)], pa.date64()),
        "time": pa.array([time(12, 30, 0, 5)], pa.time64("ns")),
        "span": pa.array([timedelta(seconds=90, milliseconds=500)], pa.duration("ns")),
        "price": pa.array([Decimal("9.99")], pa.decimal128(9, 2)),
        "fine": pa.array([Decimal("0.1234567890123456789")], pa.decimal128(20, 19)),
        "bytes": pa.array([b"\x00\xff"], pa.binary()),
        "nested": pa.array([[{"at": datetime(2024, 1, 1), "d": Decimal("1.50")}, None]], nested),
        "map": pa.array([[("k", 1), ("l", None)]], pa.map_(pa.string(), pa.int64())),
        "word": pa.array(["red"]).dictionary_encode(),
        "nan": pa.array([float("nan")]),
        "half": pa.array([np.float16(0.5)], pa.float16()),
        "large": pa.array([2**64 - 1], pa.uint64()),
        "int": pa.array([-5], pa.int8()),
        "flag": pa.array([True]),
        "null": pa.nulls(1),
    }
    (found,) = _metadata(tmp_path / "a.parquet", columns)
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "stamp": "2024-05-31T12:00:00.123456+02:00",
        "naive": "2024-05-31T00:00:00",
        "nanos": "2024-05-31T10:00:00.123456+00:00",
        "date": "2024-05-31",
        "time": "12:30:00.000005",
        "span": 90.5,
        "price": 9.99,
        "fine": "0.1234567890123456789",
        "bytes": "AP8=",
        "nested": [{"at": "2024-01-01T00:00:00", "d": 1.5}, None],
        "map": {"k": 1, "l": None},
        "word": "red",
        "nan": None,
        "half": 0.5,
        "large": "18446744073709551615",
        "int": -5,
        "flag": True,
        "null": None,
    }


def test_value_that_python_cannot_hold_spoils_its_row_only(tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"\xff\xfe", b"too"], pa.binary()).view(pa.string())
    path = _write(tmp_path / "a.parquet", {"note": broken})
    documents, bad = documents_of(ParquetSource([str(path)]))
    assert [(d.id, d.metadata) for d in documents] == [
        ("0", {"note": "fine"}),
        ("2", {"note": "too"}),
    ]
    assert [(row, reason[:12]) for _, row, reason in bad.rows] == [(2, "broken UTF-8")]


def test_dictionary_encoded_and_large_columns_serve_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {
        "id": pa.array([1, 2], pa.uint16()),
        "text": pa.array(["one", "two"]).dictionary_encode(),
        "title": pa.array(["A", "B"], pa.large_string()),
    }
    pq.write_table(pa.table(columns), path)
    assert documents_of(ParquetSource([str(path)]))[0] == [
        Document("1", "one", {"title": "A"}, "A"),
        Document("2", "two", {"title": "B"}, "B"),
    ]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 4), pa.list_(pa.float64())])
def test_vectors_of_any_list_type(tmp_path: Path, kind: Any) -> None:
    vectors = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    path = _write(tmp_path / "a.parquet", {"v": pa.array(vectors.tolist(), kind)})
    source = ParquetSource([str(path)], FieldMap(vector="v"))
    batches = list(source.read_with_vectors(batch_size=2, on_bad_row=BadRows()))
    assert [len(documents) for documents, _ in batches] == [2, 1]
    np.testing.assert_array_equal(np.concatenate([found for _, found in batches]), vectors)


def test_size_adds_up_the_footers(tmp_path: Path) -> None:
    paths = [_write(tmp_path / f"{n}.parquet", {"n": list(range(n))}) for n in (3, 4)]
    assert ParquetSource([str(path) for path in paths]).size() == 7


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"n": list(range(1000))})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read: "):
        documents_of(ParquetSource([str(path)]))
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read: "):
        ParquetSource([str(path)]).size()


def test_damaged_row_group_gives_the_rows_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {"id": [str(n) for n in range(100)], "text": [f"text {n}" for n in range(100)]}
    pq.write_table(pa.table(columns), path, row_group_size=50, compression="zstd")
    start = pq.read_metadata(path).row_group(1).column(1).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    other = tmp_path / "b.parquet"
    pq.write_table(pa.table({"id": ["x"], "text": ["text of another file"]}), other)
    documents, bad = documents_of(ParquetSource([str(path), str(other)]))
    assert [document.id for document in documents] == [*map(str, range(50)), "x"]
    [(file, row, reason)] = bad.rows
    assert (file, row) == (str(path), 51)
    assert reason.startswith(f"{path} cannot be read after row 50: ")


_WORDS = st.sampled_from(["a", "b", "c", "d", "", " ", "word\n", None])
_VECTORS = st.sampled_from([[1.0, 2.0], [0.5, -1.0], [0.0, 0.0], [1.0], [float("nan"), 1.0], None])
_SOUND = st.sampled_from([[1.0, 2.0], [0.5, -1.0]])
_ROWS = st.one_of(
    *(
        st.lists(st.tuples(ids, texts, _WORDS, vectors), min_size=1, max_size=40)
        for ids in (st.uuids().map(str), st.integers(0, 30), _WORDS)
        for texts in (st.just("text"), _WORDS)
        for vectors in (_SOUND, _VECTORS)
    )
)


@settings(max_examples=200)
@given(rows=_ROWS, size=st.integers(1, 50), block=st.integers(1, 50), with_vectors=st.booleans())
def test_blocks_say_what_their_rows_do(
    rows: list[tuple[Any, ...]], size: int, block: int, with_vectors: bool
) -> None:
    names = ("id", "text", "title", "vector")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("nexus_vdb.connectors.parquet._ROWS", block)
        path = Path(folder) / "rows.parquet"
        kind = pa.list_(pa.float32())
        pq.write_table(pa.table(columns | {"vector": pa.array(columns["vector"], kind)}), path)
        source = ParquetSource([str(path)], FieldMap(vector="vector"))
        found = []
        for files in (list(source.files()), [RowFile("rows", source.rows)]):
            bad = BadRows()
            reader = RowReader(source.fields, bad, with_vectors=with_vectors)
            batches = list(reader.batches(files, size))
            assert all(len(documents) <= size for documents, _ in batches)
            documents = [document for some, _ in batches for document in some]
            vectors = [vector.tolist() for _, some in batches for vector in some]
            found.append((documents, vectors, bad.rows))
        assert found[0] == found[1]
