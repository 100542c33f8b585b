"""Rows that are no documents, set aside where somebody can mend them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import TracebackType
from typing import TextIO

from nexus_vdb.errors import ConfigError, SourceError

__all__ = ["Quarantine"]


class Quarantine:
    """Meets `interfaces.BadRow`; a context manager that closes the file.

    Each line is an object of `file`, `row`, `offset`, `reason`, and the row as it stands in the
    file: `raw`, or `raw_base64` where that is not UTF-8.

    Args:
        path: JSONL file to append to, made with the first bad row; None only counts.
        fail: Raise at the first bad row instead.

    Attributes:
        count: Bad rows so far.
    """

    def __init__(self, path: Path | None, *, fail: bool = False) -> None:
        self.count = 0
        self._path = path
        self._fail = fail
        self._file: TextIO | None = None

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
        if self._path is None:
            return
        entry = {"file": file, "row": row, "offset": offset, "reason": reason, **_raw(raw)}
        try:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise ConfigError(f"Invalid quarantine={self._path}: {error.strerror}") from error

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def _raw(raw: bytes) -> dict[str, str]:
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode("ascii")}
