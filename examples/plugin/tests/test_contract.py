"""Both pass what nexus-vdb asks of its own stores and sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from nexus_example.source import ArrowSource

from nexus_vdb.corpus import FieldMap
from nexus_vdb.interfaces import Source
from nexus_vdb.testing.source import SourceContract
from nexus_vdb.testing.store import StoreContract


class TestSqliteStore(StoreContract):
    """A new file for every test."""

    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        """Found by its entry point."""
        return f"sqlite://{tmp_path / 'records.db'}"


class TestArrowSource(SourceContract):
    """Rows as Arrow infers their types."""

    def write(self, path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        """Write one record batch of them all."""
        file = path.with_suffix(".arrow")
        table = pa.Table.from_pylist(list(rows))
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return file

    def open(self, paths: Sequence[Path], fields: FieldMap) -> Source:
        """The source under test."""
        return ArrowSource([str(path) for path in paths], fields)
