"""Stores that are folders: files replaced as a whole, and a lock for whoever has it open."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nexus_vdb.errors import StoreLocked

__all__ = ["FolderLock", "fsync_folder", "naming", "write_durably"]


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file as a whole; on disk when it returns, and never seen half written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with naming(temporary), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors of the system that do not, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def fsync_folder(folder: Path) -> None:
    """Make new and renamed entries of a folder durable; Windows has no such call."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FolderLock:
    """The file `lock` of a folder, held until `release`, or until the process ends.

    Args:
        folder: Must be there.
        hint: What somebody who finds it held should do.
        name: Of the file, where `lock` would be in the way.

    Raises:
        StoreLocked: it is held already, be it by this process.
    """

    release: Callable[[], object]

    def __init__(self, folder: Path, *, hint: str, name: str = "lock") -> None:
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
        except OSError as error:
            holder = os.read(handle, 20).decode("ascii", "replace")
            os.close(handle)
            raise StoreLocked(
                f"{folder} is in use by process {holder or '?'}", hint=hint
            ) from error
        with suppress(OSError):  # it is there for people; the disk may be full
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
        self.release = weakref.finalize(self, os.close, handle)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 1 << 30, os.SEEK_SET)  # past the text, which others may want to read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
