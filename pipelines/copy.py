"""The copy job: every record of one store into another, without embedding anything.

Records travel as Arrow batches (`nexus_vdb.tables`). What the target has already, by document,
ordinal and content hash, is not written again, so a copy that was cut off goes on where it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nexus_vdb.collection import Collection
from nexus_vdb.errors import FingerprintMismatch
from nexus_vdb.interfaces import Store, SupportsOptimize
from nexus_vdb.reports import CopyReport
from nexus_vdb.stages import ahead
from nexus_vdb.tables import scan_tables, upsert_table, vectors_of
from nexus_vdb.types import StoreInfo

__all__ = ["Checksum", "checksum", "copy"]

Progress: TypeAlias = Callable[[CopyReport], None]
Words = npt.NDArray[np.uint64]

_BATCH = 8192
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
        with closing(ahead(_scan(self._source))) as tables:
            for table in tables:
                self._write(table, listed=listed)
                progress(self._report)
                if stop.is_set():
                    self._report.interrupted = True
                    return
        self._finish(source, settled=same_hash or not target.count)

    def _write(self, table: Any, *, listed: bool) -> None:
        if self._sum is not None:
            self._sum.add(table)
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


def _scan(store: Store) -> Generator[Any, None, None]:
    yield from scan_tables(store, _BATCH)


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


@dataclass(slots=True)
class Checksum:
    """Of records in whatever order: their ids, texts, content hashes, codes and vectors.

    Attributes:
        count: Records.
        exact: With every bit of the vectors as float32.
        half: With the vectors rounded to float16, which is what some stores keep.
    """

    count: int = 0
    exact: int = 0
    half: int = 0

    def add(self, table: Any) -> None:
        """Take in an Arrow batch of records."""
        keys, vectors = _key_words(table), vectors_of(table) + np.float32(0)  # no negative zeros
        self.count += len(table)
        self.exact = (self.exact + _total(keys, vectors)) % 2**64
        self.half = (self.half + _total(keys, vectors.astype(np.float16))) % 2**64

    def shared(self, other: Checksum) -> tuple[str, str] | None:
        """The precision to which both are equal, and the sum in hex digits; None if at none."""
        if self.count == other.count and self.exact == other.exact:
            return "float32", f"{self.exact:016x}"
        if self.count == other.count and self.half == other.half:
            return "float16", f"{self.half:016x}"
        return None


def checksum(store: Store) -> Checksum:
    """The checksum of all that a store holds; reads it once."""
    total = Checksum()
    for table in scan_tables(store, _BATCH):
        total.add(table)
    return total


_KEYS = ("id", "document_id", "ordinal", "content_hash", "code", "text")


def _key_words(table: Any) -> Words:
    """A digest of all but the vectors, and of metadata, which a store may write otherwise."""
    columns = zip(*(table.column(name).to_pylist() for name in _KEYS), strict=True)
    digests = [blake2b("\0".join(map(str, row)).encode(), digest_size=8) for row in columns]
    return np.frombuffer(b"".join(one.digest() for one in digests), dtype="<u8")


def _total(keys: Words, vectors: npt.NDArray[np.floating[Any]]) -> int:
    """Sum over the rows of a digest of key and vector."""
    octets = np.ascontiguousarray(vectors).view(np.uint8)
    padded = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8)))
    words = padded.view("<u8")
    with np.errstate(over="ignore"):
        return int(_mixed(keys + _mixed(words @ _factors(words.shape[1]))).sum())


@cache
def _factors(count: int) -> Words:
    return np.random.default_rng(0).integers(0, 2**63, count, dtype=np.uint64) * 2 + 1


def _mixed(words: Words) -> Words:
    # The finalizer of SplitMix64 (Steele et al. 2014): every bit in moves half of the bits out.
    words = (words ^ (words >> _SHIFTS[0])) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> _SHIFTS[1])) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> _SHIFTS[2])


_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
