"""From what a user names (files, globs, folders, URLs) to the files of a corpus."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from nexus_vdb.errors import MissingExtra, SourceError
from nexus_vdb.registry import source_suffixes

__all__ = ["CorpusFile", "display_name", "find_files"]


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file.

    Attributes:
        filesystem: A `pyarrow.fs.FileSystem`.
        path: The file's path in it.
    """

    filesystem: Any
    path: str


def find_files(specs: Sequence[str | os.PathLike[str]]) -> list[CorpusFile]:
    """Every file that one of the specs names: sorted, each once.

    A spec is a file; a folder, searched at any depth for known suffixes, leaving out names that
    start with "." or "_"; a glob (`*`, `?`, `[ab]`, `**`); or any of these as a URL that pyarrow
    or fsspec understands (`s3://`, `gs://`, `file://` …), where `?` begins the query instead.

    Raises:
        SourceError: a spec names nothing, or a filesystem cannot be reached.
        MissingExtra: the URL needs fsspec, which is not installed.
    """
    found: dict[tuple[str, str], CorpusFile] = {}
    for spec in specs:
        for file in _resolve(os.fspath(spec)):
            local = file.filesystem.type_name == "local"
            place = os.path.realpath(file.path) if local else file.path
            found.setdefault((file.filesystem.type_name, place), file)
    return sorted(found.values(), key=lambda file: (file.filesystem.type_name, _absolute(file)))


def display_name(filesystem: Any, path: str) -> str:
    """The path, as a URL unless it is a local one."""
    kind = str(filesystem.type_name).rpartition("+")[2]
    return path if kind == "local" else f"{'gs' if kind == 'gcs' else kind}://{path.lstrip('/')}"


def _absolute(file: CorpusFile) -> str:
    local = file.filesystem.type_name == "local"
    return str(Path(file.path).absolute()) if local else file.path


def _resolve(spec: str) -> list[CorpusFile]:
    is_url = "://" in spec
    try:
        filesystem, path = _open(spec) if is_url else _local(spec)
        exact = _at(filesystem, path)
        if exact is not None:
            return _known(spec, exact) if filesystem.get_file_info(path).size is None else exact
        base, pattern = _split(spec, "*[" if is_url else "*?[")
        if not pattern:
            raise SourceError(f"no such file or folder: {spec}")
        filesystem, base = _open(base) if is_url else _local(base)
        return _known(spec, _glob(filesystem, base, pattern.split("/")))
    except (OSError, ValueError) as error:  # Arrow's are both
        raise SourceError(f"{spec} cannot be read: {_first_line(error)}") from error


def _at(filesystem: Any, path: str) -> list[CorpusFile] | None:
    """The file, or the files of the folder, at a path; None if there is neither."""
    from pyarrow.fs import FileSelector, FileType

    info = filesystem.get_file_info(path)
    if info.type == FileType.File:
        return [CorpusFile(filesystem, path)]
    if info.type != FileType.Directory:
        return None
    infos = filesystem.get_file_info(FileSelector(path, recursive=True))
    return [
        CorpusFile(filesystem, one.path)
        for one in infos
        if one.type == FileType.File
        and not any(part.startswith((".", "_")) for part in _below(path, one.path))
    ]


def _glob(filesystem: Any, base: str, patterns: list[str]) -> list[CorpusFile]:
    """Files that match below `base`, and the files of folders that do."""
    from pyarrow.fs import FileSelector

    deep = len(patterns) > 1 or "**" in patterns
    selector = FileSelector(base or ".", recursive=deep, allow_not_found=True)
    paths = [
        info.path
        for info in filesystem.get_file_info(selector)
        if _matches(_below(base or ".", info.path), patterns)
    ]
    return [file for path in paths for file in _at(filesystem, path.removeprefix("./")) or []]


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns or not parts:
        return not parts and all(pattern == "**" for pattern in patterns)
    if parts[0].startswith(".") and not patterns[0].startswith("."):
        return False
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or _matches(parts[1:], patterns)
    return fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _below(base: str, path: str) -> list[str]:
    return path.removeprefix(base.rstrip("/")).strip("/").split("/")


def _known(spec: str, files: Iterable[CorpusFile]) -> list[CorpusFile]:
    endings = tuple(suffix + more for suffix in source_suffixes() for more in ("", ".gz", ".zst"))
    kept = [file for file in files if file.path.lower().endswith(endings)]
    if not kept:
        raise SourceError(
            f"{spec} names no file of a known kind",
            hint=f"known are {', '.join(source_suffixes())}, each also with .gz or .zst",
        )
    return kept


def _split(spec: str, wild: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the rest ("" without a wildcard)."""
    match = re.search(f"[{re.escape(wild)}]", spec)
    if match is None:
        return spec, ""
    cut = spec.rfind("/", 0, match.start()) + 1
    return spec[:cut], spec[cut:]


def _local(path: str) -> tuple[Any, str]:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem(), str(Path(path).expanduser()) if path else ""


def _open(url: str) -> tuple[Any, str]:
    """The filesystem of a URL and the path in it: pyarrow's own where it has one."""
    import pyarrow
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    if url.startswith("file://"):
        return _local(unquote(urlsplit(url).path))
    try:
        found: tuple[Any, str] = FileSystem.from_uri(url)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        pass  # no scheme of pyarrow's, or one that it was built without
    else:
        return found
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra("fsspec", extra="remote") from error
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise SourceError(f"{url} cannot be read: {_first_line(error)}") from error
    return PyFileSystem(FSSpecHandler(filesystem)), path


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
