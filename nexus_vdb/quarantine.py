"""Rows that are no documents, set aside where somebody can mend them, and read again from there.

Each line of a quarantine file is an object of `file`, `row`, `offset`, `reason`, and the row as it
stands in the file: `raw`, or `raw_base64` where that is not UTF-8. To mend a row, edit `raw` (a
JSON object, as text), then replay the file.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, TypeVar

from nexus_vdb.corpus import FieldMap, Row, RowFile, RowSource
from nexus_vdb.errors import ConfigError, SourceError
from nexus_vdb.folders import fsync_folder
from nexus_vdb.idset import IdSet
from nexus_vdb.jsonvalue import json_object
from nexus_vdb.logs import log_event
from nexus_vdb.rows import TOO_LONG, duplicate

__all__ = ["Quarantine", "QuarantineSource", "Rest"]

_log = logging.getLogger("nexus_vdb.quarantine")

Q = TypeVar("Q", bound="Quarantine")

_NO_ENTRY = "not an entry of a quarantine: an object with file, row, offset, reason and raw"


class Quarantine:
    """Meets `interfaces.BadRow`; a context manager that closes the file.

    Args:
        path: JSONL file to append to, made with the first bad row; None only counts. A row that it
            has already, from an earlier run, is not written again.
        fail: Raise at the first bad row instead.

    Attributes:
        count: Bad rows so far.
    """

    def __init__(self, path: Path | None, *, fail: bool = False) -> None:
        self.count = 0
        self._path = path
        self._fail = fail
        self._file: BinaryIO | None = None
        self._known = IdSet()

    def __call__(self, *, file: str, row: int, offset: int, reason: str, raw: bytes) -> None:
        """Set a row aside.

        Raises:
            SourceError: bad rows are not tolerated.
            ConfigError: the quarantine file cannot be written.
        """
        if self._fail:
            raise SourceError(
                f"{file}, row {row}: {reason}",
                hint="mend the row, or leave out --on-error fail to set such rows aside",
            )
        self.count += 1
        fields = {"file": file, "row": row, "offset": offset, "reason": reason}
        log_event(
            _log,
            "quarantined",
            f"{file}, row {row}: {reason}",
            fields=fields,
        )
        entry = _Entry(file, row, offset, reason, raw)
        if self._path is None:
            return
        try:
            if self._file is None:
                self._file = self._open(self._path)
            if self._known.add(entry.key):
                self._file.write(self._line(entry))
                self._file.flush()
        except OSError as error:
            raise ConfigError(f"Invalid quarantine={self._path}: {error.strerror}") from error

    def _open(self, path: Path) -> BinaryIO:
        """The file, at its end, with what it holds in mind."""
        file = path.open("ab+")
        file.seek(0)
        line = b"\n"
        for line in file:
            entry = _entry(line)
            if entry is not None:
                self._known.add(entry.key)
        if not line.endswith(b"\n"):
            file.write(b"\n")
        return file

    def _line(self, entry: _Entry) -> bytes:
        return entry.line()

    def __enter__(self: Q) -> Q:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


class QuarantineSource(RowSource):
    """The rows of a quarantine file, under the names of the files they came from.

    A row that was refused for its id, and still has it, stays refused: the other row of that id
    was taken. So does the lost end of a damaged file.

    Args:
        path: The file.
        fields: Which field means what.

    Attributes:
        end: Byte up to which the file was read.

    Raises:
        ConfigError: there is no such file.
    """

    def __init__(self, path: Path, fields: FieldMap) -> None:
        self.fields = fields
        self.end = 0
        self._path = path
        if not path.is_file():
            raise ConfigError(
                f"Invalid replay={path}; valid: a file that an ingest has set bad rows aside in"
            )

    def size(self) -> int | None:
        """None: the lines would have to be counted."""
        return None

    def rows(self) -> Iterator[Row]:
        """One row for each entry; the same entry counts once."""
        seen = IdSet()
        try:
            with self._path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    offset, self.end = self.end, self.end + len(line)
                    entry = _entry(line)
                    if entry is None and line.strip():
                        yield Row(str(self._path), number, offset, None, line, _NO_ENTRY)
                    elif entry is not None and seen.add(entry.key):
                        yield self._row(entry)
        except OSError as error:
            raise SourceError(f"{self._path} cannot be read: {error.strerror}") from error

    def files(self) -> Iterator[RowFile]:
        """One, whose rows need not have the same fields."""
        yield RowFile(str(self._path), self.rows, uniform=False)

    def _row(self, entry: _Entry) -> Row:
        place = (entry.file, entry.row, entry.offset)
        if not entry.raw:
            return Row(*place, None, b"", entry.reason)
        value, problem = json_object(entry.raw)
        if value is None and entry.reason.startswith(TOO_LONG):
            problem = entry.reason  # the rest of the line was never kept
        if value is not None and entry.reason == duplicate(str(value.get(self.fields.id))):
            value, problem = None, entry.reason
        return Row(*place, value, entry.raw, problem)


class Rest(Quarantine):
    """What stays in a quarantine file after a replay; the file is replaced as a whole.

    Args:
        source: The replay.
        path: Its file.
        fail: As for `Quarantine`.
    """

    def __init__(self, source: QuarantineSource, path: Path, *, fail: bool = False) -> None:
        self._rest = path.with_name(f"{path.name}.rest")
        super().__init__(self._rest, fail=fail)
        self._source = source
        self._replayed = path

    def settle(self) -> None:
        """Replace the file, once all that went well is stored; one with nothing left is removed.

        Entries that were added since it was read are kept.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            with self._replayed.open("rb") as file:
                file.seek(self._source.end)
                added = file.read()
            if self._file is None and not added:
                self._replayed.unlink()
            else:
                self._replace(added)
            fsync_folder(self._replayed.absolute().parent)
        except OSError as error:
            raise ConfigError(f"Invalid replay={self._replayed}: {error.strerror}") from error

    def _replace(self, added: bytes) -> None:
        file = self._file or self._open(self._rest)
        file.write(added)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        self._rest.replace(self._replayed)

    def _open(self, path: Path) -> BinaryIO:
        return path.open("wb")

    def _line(self, entry: _Entry) -> bytes:
        if entry.file == str(self._replayed):  # a line that is no entry: as it stands
            return entry.raw.rstrip(b"\n") + b"\n"
        return entry.line()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._rest.unlink(missing_ok=True)


class _Entry(NamedTuple):
    file: str
    row: int
    offset: int
    reason: str
    raw: bytes

    @property
    def key(self) -> str:
        """The same for the same row of the same file."""
        return json.dumps([self.file, self.row, self.offset, sha256(self.raw).hexdigest()])

    def line(self) -> bytes:
        """As it stands in the quarantine file."""
        value: dict[str, Any] = {
            "file": self.file,
            "row": self.row,
            "offset": self.offset,
            "reason": self.reason,
        }
        try:
            value["raw"] = self.raw.decode()
        except UnicodeDecodeError:
            value["raw_base64"] = base64.b64encode(self.raw).decode("ascii")
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _entry(line: bytes) -> _Entry | None:
    """The entry of a line; None where it is none. `raw` counts where `raw_base64` stands too."""
    value, _ = json_object(line.strip())
    if value is None:
        return None
    try:
        raw = value["raw"].encode() if "raw" in value else base64.b64decode(value["raw_base64"])
        place = str(value["file"]), int(value["row"]), int(value["offset"])
        return _Entry(*place, str(value["reason"]), raw)
    except (LookupError, ValueError, TypeError, AttributeError):
        return None
