"""The copy job: every record of one store into another, without embedding anything.

Records travel as Arrow batches (`nexus_vdb.tables`). What the target has already, by document,
ordinal and content hash, is not written again, so a copy that was cut off goes on where it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np

from nexus_vdb.collection import Collection
from nexus_vdb.errors import FingerprintMismatch
from nexus_vdb.interfaces import Store, SupportsOptimize
from nexus_vdb.pipelines._checksum import Checksum, checksum
from nexus_vdb.reports import CopyReport
from nexus_vdb.stages import ahead
from nexus_vdb.tables import grouped, joined, scan_tables, upsert_table
from nexus_vdb.types import StoreInfo

__all__ = ["copy"]

Progress: TypeAlias = Callable[[CopyReport], None]

_BATCH = 16_384  # records written in one call: that many make a part no store need merge soon
_TIDY = 5  # a store that has grown by a fifth is worth tidying up


def copy(
    source: Collection,
    target: Collection,
    *,
    verify: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> CopyReport:
    """Copy all records and what belongs to them: hash, calibration, settings of the ingest.

    Args:
        source: Read from.
        target: Written to; made if it is missing. What it holds besides stays.
        verify: Afterwards read the target and compare it with what was read from the source.
        overwrite: Write also what the target seems to have already.
        progress: Called with the growing report.
        stop: Once set, the batch in hand is finished and the rest left for the next run.

    Raises:
        StoreNotFound: there is no source.
        DimensionMismatch: the target holds vectors of another width.
        FingerprintMismatch: the target was filled by another model, or has another hash.
    """
    started = time.perf_counter()
    before = source.store.info()
    store = target.writable(before.schema)
    report = CopyReport(total=before.count)
    job = _Job(source.store, store, report, verify=verify, overwrite=overwrite)
    job.run(before, store.info(), progress or (lambda _: None), stop or threading.Event())
    report.seconds = round(time.perf_counter() - started, 3)
    return report


class _Job:
    def __init__(
        self, source: Store, target: Store, report: CopyReport, *, verify: bool, overwrite: bool
    ) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._sum = Checksum() if verify else None
        self._overwrite = overwrite

    def run(
        self, source: StoreInfo, target: StoreInfo, progress: Progress, stop: threading.Event
    ) -> None:
        """All of it, or until told to stop."""
        same_hash = _check_hash(source, target, overwrite=self._overwrite)
        if not target.count:
            self._carry(source.meta)
        elif not same_hash and target.meta.get("hash"):
            self._target.set_meta("hash", None)  # while there are codes of both
        listed = bool(target.count) and same_hash and not self._overwrite
        with closing(ahead(self._scan())) as tables:
            for table in tables:
                self._write(table, listed=listed)
                progress(self._report)
                if stop.is_set():
                    self._report.interrupted = True
                    return
        self._finish(source, settled=same_hash or not target.count)

    def _scan(self) -> Generator[Any, None, None]:
        for tables in grouped(scan_tables(self._source, _BATCH), _BATCH):
            table = joined(tables)
            if self._sum is not None:
                self._sum.add(table)
            yield table

    def _write(self, table: Any, *, listed: bool) -> None:
        new = _absent(self._target, table) if listed else table
        if len(new):
            upsert_table(self._target, new)
        self._report.copied += len(new)
        self._report.skipped += len(table) - len(new)

    def _finish(self, source: StoreInfo, *, settled: bool) -> None:
        report, target = self._report, self._target
        if isinstance(target, SupportsOptimize) and report.copied * _TIDY > target.count():
            target.optimize()
        # Records that stand there besides may have codes of another hash, or none.
        settled = settled or target.count() == source.count
        self._carry({key: v for key, v in source.meta.items() if key != "hash" or settled})
        if self._sum is not None:
            shared = self._sum.shared(checksum(target))
            report.verified = shared is not None
            if shared is not None:
                report.precision, report.checksum = shared

    def _carry(self, meta: Mapping[str, Any]) -> None:
        there = self._target.info().meta
        # The hash comes last: it is declared when what it rests on is there.
        for key in sorted(meta, key=lambda name: (name == "hash", name)):
            if there.get(key) != meta[key]:
                self._target.set_meta(key, meta[key])


def _absent(store: Store, table: Any) -> Any:
    """The rows that the store does not have as they are."""
    names = ("document_id", "ordinal", "content_hash")
    documents, ordinals, hashes = (table.column(name).to_pylist() for name in names)
    there = store.fingerprints(list(dict.fromkeys(documents)))
    if not there:
        return table
    columns = zip(documents, ordinals, hashes, strict=True)
    new = [there.get(key, {}).get(ordinal) != digest for key, ordinal, digest in columns]
    return table.take(np.flatnonzero(new)) if not all(new) else table


def _check_hash(source: StoreInfo, target: StoreInfo, *, overwrite: bool) -> bool:
    """Whether both have the same hash, or none; codes of two cannot stand in one store.

    Raises:
        FingerprintMismatch: the target has records and another hash, and is not overwritten.
    """
    same = all(source.meta.get(key) == target.meta.get(key) for key in ("hash", "itq"))
    hashed = target.count and (target.meta.get("hash") or target.meta.get("itq"))
    if hashed and not same and not overwrite:
        raise FingerprintMismatch(
            f"{target.url} has a hash of its own, not that of {source.url}",
            hint="copy into a new store; or write every record anew with --overwrite",
        )
    return same
