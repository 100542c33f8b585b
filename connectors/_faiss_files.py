"""The FAISS store on disk: manifest and leftovers.

    manifest.json                      the only commit point: replaced as a whole
    manifest.bak                       a copy of it, for rescue only
    meta-00000007-1a2b3c4d.json        small values, named by the manifest
    lock                               held by the one writer
    segments/00000003/                 immutable rows; see `_faiss_segment`
        dead-00000007-1a2b3c4d.u32     rows deleted since, named by the manifest
        codes-00000007-1a2b3c4d.u64    codes given since, named by the manifest

The first numbers are generations: every commit has the next one; the second ones are checksums
(`_faiss_check`). Whatever the manifest does not name is a leftover of a write that was cut off.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexus_vdb.connectors._faiss_check import corrupt
from nexus_vdb.errors import ConfigError, StoreError
from nexus_vdb.folders import write_durably
from nexus_vdb.types import StoreSchema

__all__ = [
    "BACKUP",
    "CODES",
    "MANIFEST",
    "Manifest",
    "SegmentEntry",
    "as_store_error",
    "check_vacant",
    "manifest_stamp",
    "parse_url",
    "read_manifest",
    "sweep",
    "write_manifest",
]

FORMAT = 3
"""1 had no lists, and codes in one place only; 1 and 2 had no checksums. Both are still read."""

_READ = (1, 2, FORMAT)

_OURS = {"segments", "lock", "manifest.json.tmp"}  # what is there before the first commit

MANIFEST = "manifest.json"
BACKUP = "manifest.bak"
CODES = "codes.u64"


def parse_url(url: str) -> tuple[Path, bool]:
    """The folder of a URL, and whether it is to be rescued.

    Raises:
        ConfigError: it names no folder.
    """
    name, _, option = url.partition("://")[2].partition("?")
    if not name:
        raise ConfigError(f"{url!r} names no folder", hint="write it as faiss://./index")
    if option not in ("", "rescue"):
        raise ConfigError(f"{url!r} asks for {option!r}", hint="the only option is ?rescue")
    return Path(name).expanduser(), option == "rescue"


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment as the manifest names it.

    Attributes:
        name: Folder under `segments`.
        rows: Rows in its files, dead ones included.
        dead: File of its dead rows, "" for none.
        codes: File of its codes.
        lists: Number of its coarse lists, 0 for none.
        sums: File of the checksums of the files that it was written with, "" for none.
    """

    name: str
    rows: int
    dead: str = ""
    codes: str = CODES
    lists: int = 0
    sums: str = ""


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


def check_vacant(folder: Path) -> None:
    """Refuse to make a store among files that are not a store's.

    Raises:
        StoreError: the folder is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file", hint="choose a new folder for the store")
    if folder.exists() and {path.name for path in folder.iterdir()} - _OURS:
        raise StoreError(
            f"{folder} has files in it, but is no store", hint="choose an empty or new folder"
        )


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest | None:
    """The last committed state; None where there never was one.

    Raises:
        StoreCorrupt: it is damaged, or gone where there is a copy of it.
        StoreError: it was written by a version with another format.
    """
    path = folder / name
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if name == MANIFEST and (folder / BACKUP).is_file():
            raise corrupt(path, "is missing") from None
        return None
    try:
        value = json.loads(content)
        if value["format"] not in _READ:
            raise StoreError(
                f"{folder} has format {value['format']}, this version reads formats up to {FORMAT}",
                hint="use the version of nexus-vdb that wrote it, or ingest into a new folder",
            )
        if value["format"] >= FORMAT and value.pop("checksum") != _checksum(value):
            raise corrupt(path, "is damaged: its checksum does not fit")
        schema = StoreSchema(**value["schema"] | {"cuts": tuple(value["schema"]["cuts"])})
        segments = tuple(SegmentEntry(**entry) for entry in value["segments"])
        return Manifest(schema, value["generation"], segments, value["meta"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise corrupt(path, f"is damaged: {error!r}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit: all files that it names must be on disk already."""
    value = {"format": FORMAT} | asdict(manifest)
    content = json.dumps(value | {"checksum": _checksum(value)}, indent=1).encode()
    write_durably(folder / MANIFEST, content)
    temporary = folder / f"{BACKUP}.tmp"
    with contextlib.suppress(OSError):  # there is no need to wait for it, nor to fail with it
        temporary.write_bytes(content)
        temporary.replace(folder / BACKUP)


def _checksum(value: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(value, indent=1).encode()):08x}"


def manifest_stamp(folder: Path) -> tuple[int, int, int] | None:
    """Changes with every commit; None where there is no manifest."""
    try:
        seen = (folder / MANIFEST).stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_size, seen.st_ino


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
    _unlink(folder / f"{name}.tmp" for name in (MANIFEST, BACKUP))


def _unlink(paths: Any) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


@contextmanager
def as_store_error(folder: Path) -> Iterator[None]:
    """Turn what the system refuses into a `StoreError` that names the file."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {error.filename or folder}: {error.strerror or error}",
            hint="see that the disk has room and that the folder may be written",
        ) from error
