"""`SourceContract`: what every file source must do."""

# ruff: noqa: D102 (the names of the tests say what they test)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexus_vdb.corpus import FieldMap
from nexus_vdb.errors import ConfigError, NexusError, SourceError
from nexus_vdb.interfaces import Source, SupportsVectors
from nexus_vdb.types import Document

__all__ = ["BadRows", "SourceContract", "documents_of"]


@dataclass(frozen=True)
class BadRows:
    """Keeps what it is told as (file, row, reason)."""

    rows: list[tuple[str, int, str]] = field(default_factory=list)
    raws: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def __call__(self, *, file: str, row: int, offset: int, reason: str, raw: bytes) -> None:
        """Meets `interfaces.BadRow`."""
        self.rows.append((file, row, reason))
        self.raws.append(raw)
        self.offsets.append(offset)


def documents_of(source: Source, *, batch_size: int = 2) -> tuple[list[Document], BadRows]:
    """All documents of a source, and its bad rows; batches are checked for their length."""
    bad = BadRows()
    batches = list(source.read(batch_size=batch_size, on_bad_row=bad))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    return [document for batch in batches for document in batch], bad


class SourceContract:
    """Subclass it in a test file, and override `write` and `open`; the rest is inherited."""

    def write(self, path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        """Write rows of JSON values to a file of the format; may add a suffix to the path."""
        raise NotImplementedError

    def open(self, paths: Sequence[Path], fields: FieldMap) -> Source:
        """The source of these files."""
        raise NotImplementedError

    def _read(
        self, path: Path, rows: Sequence[dict[str, Any]], fields: FieldMap | None = None
    ) -> tuple[list[Document], BadRows]:
        return documents_of(self.open([self.write(path, rows)], fields or FieldMap()))

    def test_rows_become_documents(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [
            {"id": "a", "text": "one", "title": "First", "year": 1999, "tags": ["x", "y"]},
            {"id": "b", "text": " two\n", "title": None, "year": None, "tags": []},
            {"id": "ü", "text": "三", "title": "", "year": -1, "tags": ["z"]},
        ]
        documents, bad = self._read(tmp_path / "a", rows)
        assert documents == [
            Document(
                "a", "one", {"title": "First", "year": 1999, "tags": ["x", "y"]}, title="First"
            ),
            Document("b", " two\n", {"title": None, "year": None, "tags": []}),
            Document("ü", "三", {"title": "", "year": -1, "tags": ["z"]}),
        ]
        assert bad.rows == []

    def test_integer_ids_become_text(self, tmp_path: Path) -> None:
        documents, bad = self._read(tmp_path / "a", [{"id": 7, "text": "one"}])
        assert ([document.id for document in documents], bad.rows) == (["7"], [])

    def test_fields_can_have_other_names(self, tmp_path: Path) -> None:
        row = {"_id": "a", "body": "one", "head": "First", "id": 3, "text": "no"}
        fields = FieldMap(id="_id", text="body", title="head")
        documents, _ = self._read(tmp_path / "a", [row], fields)
        assert documents == [
            Document("a", "one", {"head": "First", "id": 3, "text": "no"}, title="First")
        ]

    def test_bad_rows_are_told_and_passed_over(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [
            {"id": "a", "text": "one"},
            {"id": "b", "text": None},
            {"id": "c", "text": ""},
            {"id": "d", "text": " \n"},
            {"id": None, "text": "two"},
            {"id": "", "text": "three"},
            {"id": "a", "text": "four"},
            {"id": "b", "text": "five"},
        ]
        path = self.write(tmp_path / "a", rows)
        documents, bad = documents_of(self.open([path], FieldMap()))
        assert [(document.id, document.text) for document in documents] == [
            ("a", "one"),
            ("b", "five"),
        ]
        assert bad.rows == [
            (str(path), 2, "'text' is null"),
            (str(path), 3, "'text' is empty"),
            (str(path), 4, "'text' is empty"),
            (str(path), 5, "'id' is null"),
            (str(path), 6, "'id' is empty"),
            (str(path), 7, "duplicate id 'a'"),
        ]
        assert all(bad.raws)

    @pytest.mark.parametrize("name", ["id", "text"])
    def test_values_of_a_wrong_type_are_bad_rows(self, tmp_path: Path, name: str) -> None:
        for wrong in (1.5, True, ["a"]):
            documents, bad = self._read(
                tmp_path / f"{type(wrong).__name__}", [{"id": "a", "text": "one", name: wrong}]
            )
            assert documents == []
            assert [row for _, row, _ in bad.rows] == [1]

    def test_ids_are_unique_over_files_and_reads_start_afresh(self, tmp_path: Path) -> None:
        first = self.write(tmp_path / "1", [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}])
        second = self.write(
            tmp_path / "2", [{"id": "b", "text": "three"}, {"id": "c", "text": "4"}]
        )
        source = self.open([first, second], FieldMap())
        for _ in range(2):
            documents, bad = documents_of(source)
            assert [document.text for document in documents] == ["one", "two", "4"]
            assert bad.rows == [(str(second), 1, "duplicate id 'b'")]

    @pytest.mark.parametrize(
        ("fields", "name", "option"),
        [
            (FieldMap(id="key"), "key", "--id-field"),
            (FieldMap(text="body"), "body", "--text-field"),
        ],
    )
    def test_field_that_no_row_has_stops_the_read(
        self, tmp_path: Path, fields: FieldMap, name: str, option: str
    ) -> None:
        with pytest.raises(SourceError, match=f"no field '{name}'; it has: id, text") as caught:
            self._read(tmp_path / "a", [{"id": "a", "text": "one"}] * 3, fields)
        assert option in caught.value.hint

    def test_no_rows_are_fine(self, tmp_path: Path) -> None:
        path = tmp_path / self.write(tmp_path / "full", [{"id": "a", "text": "one"}]).name
        path.write_bytes(b"")
        assert documents_of(self.open([path], FieldMap())) == ([], BadRows())

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a", [{"id": "a", "text": "one"}])
        path.unlink()
        with pytest.raises(SourceError, match="cannot be read") as caught:
            documents_of(self.open([path], FieldMap()))
        assert str(path) in str(caught.value)

    def test_size_is_the_number_of_rows_or_unknown(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a", [{"id": "a", "text": "one"}, {"id": "b", "text": ""}])
        assert self.open([path], FieldMap()).size() in (2, None)

    def test_reading_can_be_stopped_by_a_bad_row(self, tmp_path: Path) -> None:
        def stop(*, file: str, row: int, offset: int, reason: str, raw: bytes) -> None:
            raise NexusError(reason)

        path = self.write(tmp_path / "a", [{"id": "a", "text": ""}, {"id": "b", "text": "two"}])
        with pytest.raises(NexusError, match="'text' is empty"):
            list(self.open([path], FieldMap()).read(batch_size=2, on_bad_row=stop))

    def test_batch_size_must_be_positive(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a", [{"id": "a", "text": "one"}])
        with pytest.raises(ConfigError):
            documents_of(self.open([path], FieldMap()), batch_size=0)

    def test_vectors_come_beside_the_documents(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [
            {"id": "a", "text": "one", "vector": [1.0, 2.0, 0.5], "year": 1},
            {"id": "b", "text": "two", "vector": [1.0, 2.0], "year": 2},
            {"id": "c", "text": "three", "vector": None, "year": 3},
            {"id": "d", "text": "four", "vector": [0.0, 0.0, 0.0], "year": 4},
            {"id": "e", "text": "five", "vector": [0.0, 1e300, 0.0], "year": 5},
            {"id": "f", "text": "six", "vector": [-1.0, 0.0, 0.25], "year": 6},
        ]
        path = self.write(tmp_path / "a", rows)
        source = self.open([path], FieldMap(vector="vector"))
        if not isinstance(source, SupportsVectors):
            pytest.skip("the source has no vectors")
        bad = BadRows()
        ((documents, vectors),) = source.read_with_vectors(batch_size=9, on_bad_row=bad)
        assert documents == [Document("a", "one", {"year": 1}), Document("f", "six", {"year": 6})]
        assert vectors.dtype == np.float32
        assert vectors.tolist() == [[1.0, 2.0, 0.5], [-1.0, 0.0, 0.25]]
        assert [row for _, row, _ in bad.rows] == [2, 3, 4, 5]
        assert all("vector" not in d.metadata for d in documents_of(source)[0])
