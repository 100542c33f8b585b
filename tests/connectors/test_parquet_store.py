from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import nexus_vdb as nx
from nexus_vdb.connectors import parquet_store
from nexus_vdb.connectors.parquet_store import ParquetStore
from nexus_vdb.errors import StoreCorrupt, StoreError, StoreLocked
from nexus_vdb.hashing import from_hex
from nexus_vdb.registry import open_store
from nexus_vdb.tables import table_schema
from nexus_vdb.testing.compare import assert_same_records, scan_all, select
from nexus_vdb.testing.samples import sample_id, sample_queries, sample_records
from nexus_vdb.testing.store import StoreContract
from nexus_vdb.types import SearchPlan, StoreSchema

SCHEMA = StoreSchema(8, (4, 8), "a" * 64, "fake")


class TestParquetStore(StoreContract):
    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        return f"parquet://{tmp_path}/export"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "export"


@pytest.fixture
def store(folder: Path) -> ParquetStore:
    made = ParquetStore.open(f"parquet://{folder}", SCHEMA)
    made.upsert(sample_records(40, dim=8))
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_any_tool_reads_the_files_as_they_stand(folder: Path, store: ParquetStore) -> None:
    other = sample_records(10, seed=3, dim=8)
    store.upsert(replace(other, ids=[sample_id(number) for number in range(35, 45)]))
    store.delete(ids=[sample_id(0)])
    store.set_meta("hash", "model")
    table = ds.dataset(folder, format="parquet").to_table()  # as pandas does it
    assert table.schema.remove_metadata() == table_schema(8)
    assert len(table) == len(set(table["id"].to_pylist())) == store.count() == 44
    index = 7
    place = table["id"].to_pylist().index(sample_id(index))
    row = {name: column[0] for name, column in table.slice(place, 1).to_pydict().items()}
    records = sample_records(40, dim=8)
    assert row["text"] == records.texts[index]
    assert json.loads(row["metadata"]) == records.metadata[index]
    assert row["vector"] == records.vectors[index].tolist()
    assert from_hex([row["code"]])[0] == records.codes[index]
    kept = json.loads(pq.read_schema(folder / "_common_metadata").metadata[b"nexus_vdb"])
    assert kept["schema"] == {"dim": 8, "cuts": [4, 8], "fingerprint": "a" * 64, "model": "fake"}
    assert kept["meta"] == {"hash": "model"}
    assert set(kept["parts"]) == {name for name in names(folder) if name.startswith("part")}


def test_vectors_come_back_bit_for_bit(store: ParquetStore) -> None:
    records = sample_records(40, dim=8)
    np.testing.assert_array_equal(store.get(records.ids).vectors, records.vectors)


def test_small_parts_are_merged(folder: Path, store: ParquetStore) -> None:
    for seed in range(1, 40):
        store.upsert(sample_records(5, seed=seed, dim=8))
    assert len(names(folder)) < 34
    before = scan_all(store)
    store.optimize()
    parts = [name for name in names(folder) if name.startswith("part")]
    assert len(parts) == store.info().details["parts"] == 1
    assert_same_records(select(scan_all(store), before.ids), before)


def test_large_parts_stay_apart(
    folder: Path, store: ParquetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_store, "_LARGE", 50)
    for seed in range(1, 6):
        store.upsert(sample_records(20, seed=seed, dim=8))
    store.optimize()
    counts = [pq.read_metadata(path).num_rows for path in sorted(folder.glob("part*"))]
    assert sum(counts) == store.count() == 140
    assert 1 < len(counts) < 6


def test_a_reader_keeps_what_it_opened(store: ParquetStore) -> None:
    reader = open_store(store.info().url)
    store.upsert(replace(sample_records(40, seed=5, dim=8), ids=sample_records(40, dim=8).ids))
    store.delete(ids=[sample_id(1)])
    expected = sample_records(40, dim=8)
    assert_same_records(reader.get(expected.ids), expected)
    assert reader.count() == 40
    assert open_store(store.info().url).count() == 39


def test_one_writer(store: ParquetStore) -> None:
    second = open_store(store.info().url)
    with pytest.raises(StoreLocked, match=str(os.getpid())):
        second.delete(ids=[sample_id(1)])
    store.close()
    assert second.delete(ids=[sample_id(1)]) == 1
    with pytest.raises(StoreError, match="is closed"):
        store.count()


def test_leftovers_of_a_write_that_was_cut_off_go(folder: Path, store: ParquetStore) -> None:
    before = names(folder)
    store.close()
    (folder / "_part-00000009-0.parquet.tmp").write_bytes(b"half")
    (folder / "part-00000009-0.parquet").write_bytes((folder / before[-1]).read_bytes())
    again = open_store(f"parquet://{folder}")
    assert again.count() == 40
    again.set_meta("a", 1)
    assert names(folder) == before


def test_damage_is_named(folder: Path, store: ParquetStore) -> None:
    store.close()
    (part,) = folder.glob("part-*")
    whole = part.read_bytes()
    part.write_bytes(whole[:-20])
    with pytest.raises(StoreCorrupt, match=part.name):
        open_store(f"parquet://{folder}")
    part.unlink()
    with pytest.raises(StoreCorrupt, match=f"{part.name} is missing"):
        open_store(f"parquet://{folder}")
    part.write_bytes(whole)
    assert open_store(f"parquet://{folder}").count() == 40
    (folder / "_common_metadata").write_bytes(b"PAR1")
    with pytest.raises(StoreCorrupt, match="_common_metadata"):
        open_store(f"parquet://{folder}")


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="has files in it, but is no store"):
        open_store(f"parquet://{tmp_path}", SCHEMA)
    with pytest.raises(nx.ConfigError, match="names no folder"):
        open_store("parquet://", SCHEMA)


def test_a_single_file_can_be_read(folder: Path, store: ParquetStore) -> None:
    (part,) = folder.glob("part-*")
    alone = open_store(f"parquet://{part}")
    assert alone.info().schema == SCHEMA
    expected = sample_records(40, dim=8)
    assert_same_records(alone.get(expected.ids), expected)
    with pytest.raises(StoreError, match="read only"):
        alone.upsert(sample_records(1, dim=8))


def test_a_file_that_another_tool_wrote_can_be_read(tmp_path: Path, store: ParquetStore) -> None:
    rows = pa.concat_tables(map(pa.Table.from_batches, ([one] for one in store.scan_tables(64))))
    plain = rows.set_column(6, "vector", rows["vector"].cast(pa.list_(pa.float64())))
    plain = plain.append_column("note", pa.array(["more"] * 40)).replace_schema_metadata(None)
    pq.write_table(plain, tmp_path / "other.parquet", store_schema=False)
    other = open_store(f"parquet://{tmp_path}/other.parquet")
    assert other.info().schema == StoreSchema(8, (8,))
    expected = sample_records(40, dim=8)
    assert_same_records(other.get(expected.ids), expected)
    plan = SearchPlan(k=3, candidates="exact", cuts=(8,))
    queries = sample_queries(2, dim=8)
    assert other.search(queries, plan) == store.search(queries, plan)
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "unknown.parquet")
    with pytest.raises(StoreCorrupt, match=r"unknown\.parquet"):
        open_store(f"parquet://{tmp_path}/unknown.parquet")


WRITER = """
import sys
from dataclasses import replace
from nexus_vdb.registry import open_store
from nexus_vdb.testing.samples import sample_id, sample_records
store = open_store(sys.argv[1])
for seed in range(1, 200):
    records = sample_records(30, seed=seed, dim=8)
    store.upsert(replace(records, ids=[sample_id(number) for number in range(30)]))
"""


def test_a_kill_leaves_the_last_committed_state(folder: Path, store: ParquetStore) -> None:
    store.close()
    url, chance = f"parquet://{folder}", random.Random(0)
    written = [sample_records(30, seed=seed, dim=8).texts for seed in range(200)]
    for _ in range(3):
        generation = open_store(url).info().details["generation"]
        with subprocess.Popen([sys.executable, "-c", WRITER, url]) as process:
            while open_store(url).info().details["generation"] == generation:
                assert process.poll() is None
            time.sleep(chance.random() / 20)
            process.kill()
        left = open_store(url)
        assert left.count() == 40
        records = left.get([sample_id(number) for number in range(40)])
        assert records.texts[:30] in written  # all of one write
        assert records.texts[30:] == sample_records(40, dim=8).texts[30:]
        left.set_meta("seen", generation)
        left.close()
        table = ds.dataset(folder, format="parquet").to_table(columns=["id"])
        assert len(set(table["id"].to_pylist())) == len(table) == 40
