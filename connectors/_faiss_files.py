"""The FAISS store on disk: manifest and leftovers.

    manifest.json             the only commit point: replaced as a whole
    meta-00000007.json        small values, named by the manifest
    lock                      held by the one writer
    segments/00000003/        immutable rows; see `_faiss_segment`
        dead-00000007.u32     rows deleted since, named by the manifest
        codes-00000007.u64    codes given since, named by the manifest

Numbers are generations: every commit has the next one. Whatever the manifest does not name is a
leftover of a write that was cut off.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexus_vdb.errors import StoreCorrupt, StoreError
from nexus_vdb.folders import write_durably
from nexus_vdb.types import StoreSchema

__all__ = [
    "CODES",
    "MANIFEST",
    "Manifest",
    "SegmentEntry",
    "read_json",
    "read_manifest",
    "sweep",
    "write_manifest",
]

FORMAT = 2
"""1 had no lists, and codes in one place only; it is still read."""

MANIFEST = "manifest.json"
CODES = "codes.u64"
_REBUILD = "ingest again into a new folder, or restore this one from a copy"


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment as the manifest names it.

    Attributes:
        name: Folder under `segments`.
        rows: Rows in its files, dead ones included.
        dead: File of its dead rows, "" for none.
        codes: File of its codes.
        lists: Number of its coarse lists, 0 for none.
    """

    name: str
    rows: int
    dead: str = ""
    codes: str = CODES
    lists: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """One consistent state of the store.

    Attributes:
        schema: What was fixed when the store was made.
        generation: Number of the commit that wrote it.
        segments: What is read.
        meta: File of the small values, "" for none.
    """

    schema: StoreSchema
    generation: int
    segments: tuple[SegmentEntry, ...] = ()
    meta: str = ""


def read_json(path: Path) -> Any:
    """The value in a file.

    Raises:
        StoreCorrupt: it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreCorrupt(f"{path} is damaged: {error}", hint=_REBUILD) from error


def read_manifest(folder: Path) -> Manifest | None:
    """The last committed state; None where there never was one.

    Raises:
        StoreCorrupt: it is damaged.
        StoreError: it was written by a version with another format.
    """
    path = folder / MANIFEST
    try:
        value = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if value["format"] not in (1, FORMAT):
            raise StoreError(
                f"{folder} has format {value['format']}, this version reads format {FORMAT}",
                hint="use the version of nexus-vdb that wrote it, or ingest into a new folder",
            )
        schema = StoreSchema(**value["schema"] | {"cuts": tuple(value["schema"]["cuts"])})
        segments = tuple(SegmentEntry(**entry) for entry in value["segments"])
        return Manifest(schema, value["generation"], segments, value["meta"])
    except (KeyError, TypeError) as error:
        raise StoreCorrupt(f"{path} is damaged: {error!r}", hint=_REBUILD) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit: all files that it names must be on disk already."""
    value = {"format": FORMAT} | asdict(manifest)
    write_durably(folder / MANIFEST, json.dumps(value, indent=1).encode())


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove what the manifest does not name; what another process still maps may stay."""
    entries = {entry.name: (entry.dead, entry.codes) for entry in manifest.segments}
    for path in (folder / "segments").glob("*"):
        if path.name not in entries:
            shutil.rmtree(path, ignore_errors=True)
            continue
        changing = (*path.glob("dead-*"), *path.glob("codes*"))
        _unlink(old for old in changing if old.name not in entries[path.name])
    _unlink(old for old in folder.glob("meta-*.json*") if old.name != manifest.meta)
    _unlink([folder / f"{MANIFEST}.tmp"])


def _unlink(paths: Any) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
