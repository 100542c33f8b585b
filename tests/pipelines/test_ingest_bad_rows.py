"""Corpora full of mistakes: nothing good is lost, all that is bad is told, nothing crashes."""

from __future__ import annotations

import gzip
import json
import tempfile
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import nexus_vdb as nx
from nexus_vdb.corpus import open_corpus
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.reports import IngestReport
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.testing.source import documents_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
IDS = st.integers(0, 12).map(str) | st.integers(0, 5)
GOOD = st.builds(
    lambda key, text, rest: {**rest, "id": key, "text": f"x{text}"},
    IDS,
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.dictionaries(st.sampled_from(["year", "tags", "title"]), JSON, max_size=2),
)
ODD = st.builds(
    lambda *fields: {name: value for name, value in zip(("id", "text", "n"), fields) if value != 0},  # noqa: B905
    JSON,
    JSON,
    JSON,
)
LINE = st.one_of(
    (GOOD | ODD).map(lambda row: json.dumps(row).encode()),
    GOOD.map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.tuples(GOOD, st.integers(1, 20)).map(lambda cut: json.dumps(cut[0]).encode()[: -cut[1]]),
    st.tuples(GOOD, st.binary(min_size=1, max_size=3)).map(
        lambda pair: json.dumps(pair[0]).encode()[:-2] + pair[1].replace(b"\n", b"") + b'"}'
    ),
    st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")),
    st.sampled_from([b"", b"  ", b"null", b"[]", b'"x"', b"NaN", b"[" * 5000, b'{"id":"\\ud800"}']),
)
COLUMN = st.sampled_from(
    [pa.string(), pa.int64(), pa.float64(), pa.list_(pa.string()), pa.binary()]
)
KINDS = st.sampled_from(
    ["jsonl", "gz", "cut gz", "parquet", "cut parquet", "other parquet", "empty"]
)


def documents(lines: Sequence[bytes]) -> list[str]:
    """Ids of the lines that are documents, by the letter of the rules."""
    found = []
    for line in lines:
        try:
            value = json.loads(line.decode())
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            continue
        if not isinstance(value, dict):
            continue
        if is_document(value.get("id"), value.get("text")):
            found.append(str(value["id"]))
    return found


def is_document(key: Any, text: Any) -> bool:
    """Whether a row with this id and text is one."""
    named = isinstance(key, str | int) and not isinstance(key, bool) and str(key).strip()
    return bool(named and isinstance(text, str) and text and not text.isspace())


def write(folder: Path, number: int, kind: str, lines: Sequence[bytes]) -> tuple[list[str], int]:
    """A file; the documents in it, one for each that has an id, and its rows."""
    name = folder / f"{number}.{'parquet' if 'parquet' in kind else 'jsonl'}"
    if "parquet" in kind:
        return write_parquet(name, kind, lines)
    content = b"".join(line + b"\n" for line in lines)
    if "gz" in kind:
        name, content = name.with_suffix(".jsonl.gz"), gzip.compress(content)
    if kind == "cut gz":
        name.write_bytes(content[:8])  # less than the header of a gzip file
        return [], 1
    name.write_bytes(b"" if kind == "empty" else content)
    if kind == "empty":
        return [], 0
    # A byte order mark at the head of a file is no part of its first line.
    lines = [line.removeprefix(BOM_UTF8) for line in lines[:1]] + list(lines[1:])
    return documents(lines), sum(bool(line.strip()) for line in lines)


def write_parquet(name: Path, kind: str, lines: Sequence[bytes]) -> tuple[list[str], int]:
    ids = documents(lines)
    if kind == "other parquet":
        table = pa.table({"id": pa.array(range(len(ids))), "body": ids})
    else:
        table = pa.table({"id": pa.array(ids), "text": [f"text of {one}" for one in ids]})
    pq.write_table(table, name)
    if kind == "cut parquet":
        name.write_bytes(name.read_bytes()[:-9])
        return [], 1
    return ([] if kind == "other parquet" else ids), len(ids)


@example([("jsonl", [b"\xef\xbb\xbf"])], False)
@example([("jsonl", [b'{"id": "0", "text": "x\xc2\x85"}'] * 2)], False)  # ends lines of a str
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(KINDS, st.lists(LINE, max_size=12)), max_size=4), st.booleans())
def test_every_row_is_stored_or_set_aside(
    files: list[tuple[str, list[bytes]]], again: bool
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        ids, rows = write(folder, 0, "jsonl", [b'{"id": "first", "text": "a good one"}'])
        for number, (kind, lines) in enumerate(files, 1):
            more = write(folder, number, kind, lines)
            ids, rows = ids + more[0], rows + more[1]
        collection = nx.open("memory://", encoder=FakeEncoder(8))
        bad = folder / "bad"
        for _ in range(1 + again):
            report = run(collection, folder, bad)
            assert report.read + report.quarantined == rows
        assert report.read == len(set(ids)) == len(collection.get(sorted(set(ids))))
        entries = bad.read_bytes().splitlines() if bad.exists() else []
        assert len(entries) == report.quarantined
        if entries:
            replay = ingest(collection, IngestSettings(replay=bad))
            assert (replay.read, replay.quarantined) == (0, len(entries))
            assert len(bad.read_bytes().splitlines()) == len(entries)


def run(collection: nx.Collection, folder: Path, bad: Path) -> IngestReport:
    return ingest(collection, IngestSettings(sources=[str(folder)], quarantine=bad))


@settings(max_examples=40, deadline=None)
@given(COLUMN, COLUMN, st.data())
def test_columns_of_any_type(id_type: Any, text_type: Any, data: st.DataObject) -> None:
    values = {
        pa.string(): st.text(st.characters(codec="utf-8"), max_size=3),
        pa.int64(): st.integers(-9, 9),
        pa.float64(): st.floats(width=32),
        pa.list_(pa.string()): st.lists(st.text(max_size=1), max_size=2),
        pa.binary(): st.binary(max_size=3),
    }
    count = data.draw(st.integers(0, 6))
    columns = [
        data.draw(st.lists(st.none() | values[kind], min_size=count, max_size=count))
        for kind in (id_type, text_type)
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pq.write_table(pa.table({"id": ["a"], "text": ["fine"]}), folder / "0.parquet")
        table = pa.table(
            {"id": pa.array(columns[0], id_type), "text": pa.array(columns[1], text_type)}
        )
        pq.write_table(table, folder / "1.parquet")
        report = run(nx.open("memory://", encoder=FakeEncoder(8)), folder, folder / "bad")
    good = {str(key) for key, text in zip(*columns, strict=True) if is_document(key, text)}
    assert report.read == len(good | {"a"})
    assert report.read + report.quarantined == count + 1


def test_the_same_id_far_apart_is_found(tmp_path: Path) -> None:
    rows = [*range(30_000), 3, *range(30_000, 30_010)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"id": {row}, "text": "row {row}"}}\n' for row in rows))
    documents, bad = documents_of(open_corpus(path))
    assert len(documents) == 30_010
    assert bad.rows == [(str(path), 30_001, "duplicate id '3'")]


def test_mended_rows_go_in_and_leave_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"id": "a", "text": "fine"}\n{"id": "b", "text": "cut of\n{"id": "c"}\n', encoding="utf-8"
    )
    bad = tmp_path / "bad"
    collection = nx.open("memory://", encoder=FakeEncoder(8))
    assert run(collection, tmp_path, bad).quarantined == 2
    first, second = bad.read_text(encoding="utf-8").splitlines()
    mended = json.loads(first) | {"raw": '{"id": "b", "text": "cut off", "year": 1}'}
    bad.write_text(json.dumps(mended) + "\n" + second + "\n", encoding="utf-8")

    dry = ingest(collection, IngestSettings(replay=bad, dry_run=True))
    assert (dry.embedded, dry.quarantined) == (1, 1)
    assert len(bad.read_text(encoding="utf-8").splitlines()) == 2
    report = ingest(collection, IngestSettings(replay=bad))
    assert (report.read, report.embedded, report.quarantined) == (1, 1, 1)
    assert collection.get(["b"]).texts == ["cut off"]
    assert collection.get(["b"]).metadata == [{"year": 1}]
    assert bad.read_text(encoding="utf-8") == second + "\n"

    # Mended in the corpus as well, the document is known.
    (tmp_path / "a.jsonl").write_text(mended["raw"] + "\n", encoding="utf-8")
    assert run(collection, tmp_path, bad).skipped == 1
    bad.write_text(second.replace('{\\"id\\": \\"c\\"}', '{\\"id\\": 3, \\"text\\": \\"three\\"}'))
    assert ingest(collection, IngestSettings(replay=bad)).embedded == 1
    assert not bad.exists()


def test_a_replay_is_no_corpus(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(8))
    bad = tmp_path / "bad"
    with pytest.raises(nx.ConfigError, match="Invalid replay="):
        ingest(collection, IngestSettings(replay=bad))
    bad.write_text("")
    with pytest.raises(nx.ConfigError, match="a replay is not the whole corpus"):
        ingest(collection, IngestSettings(replay=bad, delete_missing=True))
    assert ingest(collection, IngestSettings(replay=bad)).read == 0


def test_nothing_is_set_aside_before_the_store_is_reached(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{broken\n")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text("{}")
    with pytest.raises(nx.StoreCorrupt):
        run(nx.open(f"faiss://{tmp_path}/index"), tmp_path / "a.jsonl", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
