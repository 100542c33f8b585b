"""The FAISS store on disk: manifest, durable writes, the writer's lock, leftovers.

    manifest.json             the only commit point: replaced as a whole
    meta-00000007.json        small values, named by the manifest
    lock                      held by the one writer
    segments/00000003/        immutable rows; see `_faiss_segment`
        dead-00000007.u32     rows deleted since, named by the manifest

Numbers are generations: every commit has the next one. Whatever the manifest does not name is a
leftover of a write that was cut off.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexus_vdb.errors import StoreCorrupt, StoreError, StoreLocked
from nexus_vdb.types import StoreSchema

__all__ = [
    "MANIFEST",
    "Manifest",
    "SegmentEntry",
    "WriterLock",
    "fsync_folder",
    "read_json",
    "read_manifest",
    "sweep",
    "write_durably",
    "write_manifest",
]

FORMAT = 1
MANIFEST = "manifest.json"
_LOCK = "lock"
_REBUILD = "ingest again into a new folder, or restore this one from a copy"


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment as the manifest names it.

    Attributes:
        name: Folder under `segments`.
        rows: Rows in its files, dead ones included.
        dead: File of its dead rows, "" for none.
    """

    name: str
    rows: int
    dead: str = ""


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
        if value["format"] != FORMAT:
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


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file as a whole; on disk when it returns, and never seen half written."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make new and renamed entries of a folder durable; Windows has no such call."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove what the manifest does not name; what another process still maps may stay."""
    entries = {entry.name: entry.dead for entry in manifest.segments}
    for path in (folder / "segments").glob("*"):
        if path.name not in entries:
            shutil.rmtree(path, ignore_errors=True)
            continue
        _unlink(old for old in path.glob("dead-*") if old.name != entries[path.name])
    _unlink(old for old in folder.glob("meta-*.json*") if old.name != manifest.meta)
    _unlink([folder / f"{MANIFEST}.tmp"])


def _unlink(paths: Any) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


class WriterLock:
    """Held by the one writer of a folder, until `release`, or until its process ends.

    Raises:
        StoreLocked: somebody else holds it.
    """

    release: Callable[[], object]

    def __init__(self, folder: Path) -> None:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
        except OSError as error:
            holder = _holder(handle)
            os.close(handle)
            raise StoreLocked(
                f"another writer{holder} holds {folder}",
                hint="wait until it has finished, or close that store; reading needs no lock",
            ) from error
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, str(os.getpid()).encode())
        self.release = weakref.finalize(self, os.close, handle)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 1 << 30, os.SEEK_SET)  # past the text, which others may want to read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    text = os.read(handle, 20).decode("ascii", "replace")
    return f" (process {text})" if text.isdigit() else ""
