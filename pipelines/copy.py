"""The copy job: every record of one store into another, without embedding anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeAlias

from nexus_vdb.collection import Collection
from nexus_vdb.errors import FingerprintMismatch
from nexus_vdb.interfaces import Store, SupportsOptimize
from nexus_vdb.reports import CopyReport
from nexus_vdb.types import Records, StoreInfo

__all__ = ["checksum", "copy"]

Progress: TypeAlias = Callable[[CopyReport], None]

_BATCH = 1024
_META = ("itq", "calibration", "hash")  # the hash is declared when what it rests on is there


def copy(
    source: Collection,
    target: Collection,
    *,
    verify: bool = False,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy all records; those of the same id are replaced, so a copy may be run again.

    Args:
        source: Read from.
        target: Written to; made if it is missing.
        verify: Afterwards read both and compare what they hold.
        progress: Called with the growing report.

    Raises:
        StoreNotFound: there is no source.
        DimensionMismatch: the target holds vectors of another width.
        FingerprintMismatch: the target was filled by another model, or has another hash.
    """
    started = time.perf_counter()
    info = source.store.info()
    store = target.writable(info.schema)
    _check_hash(info, store.info())
    report = CopyReport(total=info.count)
    for records in source.store.scan(_BATCH):
        store.upsert(records)
        report.copied += len(records)
        if progress is not None:
            progress(report)
    for key in _META:
        if key in info.meta:
            store.set_meta(key, info.meta[key])
    if isinstance(store, SupportsOptimize):
        store.optimize()
    if verify:
        report.verified = checksum(source.store) == checksum(store)
    report.seconds = round(time.perf_counter() - started, 3)
    return report


def checksum(store: Store) -> tuple[int, int]:
    """Number of records, and a digest of their ids, content hashes and codes in whatever order."""
    count = total = 0
    for records in store.scan(_BATCH):
        count += len(records)
        total += sum(_digests(records))
    return count, total % 2**64


def _digests(records: Records) -> list[int]:
    columns = zip(records.ids, records.content_hashes, records.codes.tolist(), strict=True)
    return [
        int.from_bytes(blake2b(f"{id_} {content} {code:x}".encode(), digest_size=8).digest(), "big")
        for id_, content, code in columns
    ]


def _check_hash(source: StoreInfo, target: StoreInfo) -> None:
    """Codes of two rotations cannot stand in one store."""
    if target.count and source.meta.get("itq") != target.meta.get("itq"):
        raise FingerprintMismatch(
            f"{target.url} has a hash of its own, fitted on other vectors",
            hint="copy into a new store",
        )
