"""Looking for damage in a FAISS store, and reading what is whole of a damaged one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nexus_vdb.connectors._faiss_check import (
    PAGE,
    Sums,
    bad_pages,
    corrupt,
    mapped_octets,
    read_named,
    read_sums,
)
from nexus_vdb.connectors._faiss_files import (
    BACKUP,
    CODES,
    Manifest,
    SegmentEntry,
    read_manifest,
)
from nexus_vdb.connectors._faiss_segment import Segment
from nexus_vdb.connectors._faiss_state import State, View, read_dead, read_meta
from nexus_vdb.errors import StoreCorrupt
from nexus_vdb.types import StoreSchema

__all__ = ["Rescued", "damages", "rescue"]


def damages(
    folder: Path, progress: Callable[[int, int], None] | None = None
) -> list[StoreCorrupt] | None:
    """Read every file that the manifest names: an error for each that is not as it was written.

    Args:
        folder: The store's.
        progress: Told how many bytes were read, and of how many.

    Returns:
        None where there is no store.
    """
    try:
        manifest = read_manifest(folder)
    except StoreCorrupt as error:
        return [error]
    if manifest is None:
        return None
    found = [*_errors(read_meta, folder, manifest)]
    if any(entry.sums for entry in manifest.segments):
        found += _errors(_check_backup, folder)
    files: dict[Path, tuple[int, Sums]] = {}
    for entry in manifest.segments:
        path = folder / "segments" / entry.name
        found += _errors(_add_files, files, path, entry)
        found += _errors(_check_beside, path, entry, manifest.schema)
    return found + _check_pages(files, progress or (lambda done, total: None))


def _errors(look: Callable[..., object], *args: object) -> Iterator[StoreCorrupt]:
    try:
        look(*args)
    except StoreCorrupt as error:
        yield error


def _check_backup(folder: Path) -> None:
    if read_manifest(folder, BACKUP) is None:
        raise corrupt(folder / BACKUP, "is missing")


def _add_files(files: dict[Path, tuple[int, Sums]], path: Path, entry: SegmentEntry) -> None:
    sums = read_sums(path / entry.sums) if entry.sums else {}
    replaced = {CODES} - {entry.codes}
    files.update({path / name: one for name, one in sums.items() if name not in replaced})


def _check_beside(path: Path, entry: SegmentEntry, schema: StoreSchema) -> None:
    """What was written after the segment; of a segment without checksums, what can be told."""
    if entry.dead:
        read_dead(path / entry.dead)
    if entry.codes != CODES:
        read_named(path / entry.codes)
    if not entry.sums:
        segment = Segment(path, entry, schema)
        for number in range(len(segment.table)):
            segment.table.batch(number)


def _check_pages(
    files: dict[Path, tuple[int, Sums]], progress: Callable[[int, int], None]
) -> list[StoreCorrupt]:
    total, done, found = sum(size for size, _ in files.values()), 0, list[StoreCorrupt]()

    def advance(read: int) -> None:
        nonlocal done
        done += read
        progress(done, total)

    for path, (size, sums) in files.items():
        try:
            bad = bad_pages(mapped_octets(path, size), sums, advance)
        except StoreCorrupt as error:
            found.append(error)
            continue
        if len(bad):
            what = f"is damaged: {len(bad)} pages, the first at byte {bad[0] * PAGE}"
            found.append(corrupt(path, what))
    return found


@dataclass(frozen=True, slots=True)
class Rescued:
    """What can still be read of a store.

    Attributes:
        state: All records that are as they were written.
        lost: How many others there were.
        damage: What is damaged, in lines.
    """

    state: State
    lost: int
    damage: list[str]


def rescue(folder: Path) -> Rescued | None:
    """Open what is whole of a store, having read all of it; None where there is no store.

    Raises:
        StoreCorrupt: the manifest is damaged, and so is its copy.
    """
    damage: list[str] = []
    manifest = _any_manifest(folder, damage)
    if manifest is None:
        return None
    job = _Rescue(folder, manifest, damage)
    for entry in manifest.segments:
        job.add(entry)
    return job.done()


class _Rescue:
    def __init__(self, folder: Path, manifest: Manifest, damage: list[str]) -> None:
        self._folder, self._manifest, self._damage = folder, manifest, damage
        self._views: list[View] = []
        self._count = 0
        self._has_codes = True

    def add(self, entry: SegmentEntry) -> None:
        """What can be read of a segment."""
        path, at = self._folder / "segments" / entry.name, len(self._views)
        dead = np.zeros(0, dtype=np.int64)
        try:
            dead = read_dead(path / entry.dead) if entry.dead else dead
        except StoreCorrupt as error:
            self._damage.append(f"{error}: records that were deleted may be back")
            at = 0  # and those that were replaced: the newer ones come after them, and prevail
        expected = entry.rows - len(dead)
        self._count += expected
        try:
            segment = self._segment(path, entry)
            gone, error_of_codes = segment.rescue()
        except StoreCorrupt as error:
            self._damage.append(f"{error}: {expected:,} records are lost")
            return
        if error_of_codes is not None:
            self._damage.append(f"{error_of_codes}: the hash is lost, and has to be made anew")
            self._has_codes = False
        gone[dead] = False
        if gone.any():
            self._damage.append(f"{path} has damaged pages: {int(gone.sum()):,} records are lost")
        gone[dead] = True
        if not gone.all():
            self._views.insert(at, View(segment, dead=np.flatnonzero(gone), dead_file=entry.dead))

    def _segment(self, path: Path, entry: SegmentEntry) -> Segment:
        for error in _errors(_add_files, {}, path, entry):
            self._damage.append(f"{error}: its records cannot be compared, and may be damaged")
            entry = replace(entry, sums="")
        return Segment(path, entry, self._manifest.schema, rescue=True)

    def done(self) -> Rescued:
        """All of them."""
        try:
            meta = read_meta(self._folder, self._manifest)
        except StoreCorrupt as error:
            self._damage.append(f"{error}: hash, calibration and settings are lost")
            meta = {}
        if not self._has_codes:
            meta.pop("hash", None)
        state = State(self._manifest, self._views, meta)
        return Rescued(state, self._count - state.count, self._damage)


def _any_manifest(folder: Path, damage: list[str]) -> Manifest | None:
    try:
        return read_manifest(folder)
    except StoreCorrupt as error:
        manifest = read_manifest(folder, BACKUP)
        if manifest is None:
            raise
        damage.append(f"{error}: its copy is read, which may be one commit older")
        return manifest
