"""`sqlite://PATH`: a store in one SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nexus_vdb.checks import check_meta, check_plan, check_records, check_schema, check_selection
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.errors import StoreError, StoreNotFound
from nexus_vdb.filters import Filter, matches
from nexus_vdb.records import no_records, take_records
from nexus_vdb.types import Hit, QueryBatch, Records, SearchPlan, StoreInfo, StoreSchema

__all__ = ["SqliteStore"]

_TABLES = """
    CREATE TABLE records (id TEXT PRIMARY KEY, document_id TEXT, ordinal INTEGER, text TEXT,
                          metadata TEXT, content_hash TEXT, vector BLOB, code BLOB);
    CREATE INDEX documents ON records (document_id);
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT);
    CREATE TABLE about (schema TEXT);
"""
_LISTED = "IN (SELECT value FROM json_each(?))"


class SqliteStore:
    """Rows in SQLite; each search reads those that match, and has the exact store rank them.

    Good for some ten thousand records, and to see what a store must do.
    """

    _schema: StoreSchema

    def __init__(self, url: str, path: Path) -> None:
        self._url, self._path = url, path
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreError(f"{url}: {error}", hint="name a file: sqlite://PATH") from error

    @classmethod
    def open(cls, url: str, schema: StoreSchema | None = None) -> SqliteStore:
        """Open the file at a URL, or make it if a schema is given; see `interfaces.Store`."""
        path = Path(url.partition("://")[2])
        if schema is not None:
            check_schema(url, stored=None, asked=schema)
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.exists():
            raise StoreNotFound(f"nothing is stored at {url}", hint="ingest something first")
        store = cls(url, path)
        try:
            if schema is not None:
                store._make(schema)
            store._schema = store._stored_schema()
            if schema is not None:
                check_schema(url, stored=store._schema, asked=schema)
        except Exception:
            store.close()
            raise
        return store

    def _make(self, schema: StoreSchema) -> None:
        """Make the tables if there are none; a kill leaves all of them or none."""
        with self._database() as database:
            database.execute("BEGIN IMMEDIATE")  # so that of two who open it, one makes it
            if database.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                for statement in _TABLES.split(";"):
                    database.execute(statement)
                database.execute("INSERT INTO about VALUES (?)", (json.dumps(asdict(schema)),))

    def _stored_schema(self) -> StoreSchema:
        with self._database() as database:
            values = json.loads(database.execute("SELECT schema FROM about").fetchone()[0])
        return StoreSchema(**values | {"cuts": tuple(values["cuts"])})

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is durable afterwards, or nothing was done."""
        try:
            with self._connection:
                yield self._connection
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._url}: {error}", hint="is the file a store, and free?"
            ) from error

    def _select(self, condition: str, *values: Any) -> Records:
        with self._database() as database:
            rows = database.execute(f"SELECT * FROM records WHERE {condition}", values).fetchall()
        if not rows:
            return no_records(self._schema.dim)
        ids, documents, ordinals, texts, metadata, hashes, vectors, codes = (
            list(column) for column in zip(*rows, strict=True)
        )
        return Records(
            ids,
            documents,
            np.array(ordinals, dtype=np.int32),
            texts,
            [json.loads(one) for one in metadata],
            hashes,
            np.frombuffer(bytearray().join(vectors), dtype=np.float32).reshape(len(ids), -1),
            np.frombuffer(bytearray().join(codes), dtype=np.uint64),
        )

    def _matching(self, where: Filter | None) -> str:
        """The SQL of a filter, which SQLite asks nexus-vdb about row by row."""
        if where is None:
            return "TRUE"
        self._connection.create_function("fits", 1, lambda text: matches(where, json.loads(text)))
        return "fits(metadata)"

    def upsert(self, records: Records) -> None:
        """Write records in one transaction, replacing those of the same id."""
        check_records(records, self._schema.dim)
        rows = zip(
            records.ids,
            records.document_ids,
            records.ordinals.tolist(),
            records.texts,
            map(json.dumps, records.metadata),
            records.content_hashes,
            (vector.astype(np.float32).tobytes() for vector in records.vectors),
            (code.tobytes() for code in records.codes),
            strict=True,
        )
        with self._database() as database:
            database.executemany("REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def search(
        self, queries: QueryBatch, plan: SearchPlan, where: Filter | None = None
    ) -> list[list[Hit]]:
        """At most `plan.k` hits per query, best first."""
        check_plan(queries, plan, self._schema.dim)
        ranked = MemoryStore.open("memory://", self._schema)
        ranked.upsert(self._select(self._matching(where)))
        return ranked.search(queries, plan)

    def get(self, ids: Sequence[str]) -> Records:
        """The records of these ids, in this order; unknown ids are left out."""
        found = self._select(f"id {_LISTED}", json.dumps(list(ids)))
        row_of = {id_: row for row, id_ in enumerate(found.ids)}
        return take_records(found, [row_of[id_] for id_ in ids if id_ in row_of])

    def fingerprints(self, document_ids: Sequence[str]) -> dict[str, dict[int, str]]:
        """Content hash by chunk ordinal, for each of the documents that is there at all."""
        columns, listed = "document_id, ordinal, content_hash", json.dumps(list(document_ids))
        query = f"SELECT {columns} FROM records WHERE document_id {_LISTED}"
        found: dict[str, dict[int, str]] = {}
        with self._database() as database:
            for document, ordinal, digest in database.execute(query, (listed,)):
                found.setdefault(document, {})[ordinal] = digest
        return found

    def delete(self, *, ids: Sequence[str] | None = None, where: Filter | None = None) -> int:
        """Delete by id or by filter (exactly one of them); returns how many records went."""
        check_selection(ids, where)
        values = () if ids is None else (json.dumps(list(ids)),)
        condition = self._matching(where) if ids is None else f"id {_LISTED}"
        with self._database() as database:
            return database.execute(f"DELETE FROM records WHERE {condition}", values).rowcount

    def scan(self, batch_size: int = 1024) -> Iterator[Records]:
        """Every record once, in order of id."""
        last = ""
        while len(batch := self._select("id > ? ORDER BY id LIMIT ?", last, batch_size)):
            yield batch
            last = batch.ids[-1]

    def count(self, where: Filter | None = None) -> int:
        """How many records there are, or match."""
        condition = self._matching(where)
        with self._database() as database:
            found = database.execute(f"SELECT count(*) FROM records WHERE {condition}").fetchone()
        return int(found[0])

    def info(self) -> StoreInfo:
        """What is stored, and how."""
        with self._database() as database:
            meta = dict(database.execute("SELECT key, value FROM meta"))
        return StoreInfo(
            url=self._url,
            schema=self._schema,
            count=self.count(),
            meta={key: json.loads(value) for key, value in meta.items()},
            details={"bytes": self._path.stat().st_size},
        )

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a small JSON value with the store."""
        text = json.dumps(check_meta(key, value))
        with self._database() as database:
            database.execute("REPLACE INTO meta VALUES (?, ?)", (key, text))

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        self._connection.close()
