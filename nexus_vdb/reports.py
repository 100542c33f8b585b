"""What jobs report when they are done, and while they run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CopyReport", "IngestReport"]


@dataclass(slots=True)
class IngestReport:
    """Counts of an ingest; they grow while it runs.

    Attributes:
        read: Documents read.
        embedded: Documents written because they are new or changed; under `dry_run`, that would be.
        skipped: Documents left alone because the store has them as they are.
        deleted: Documents deleted because the corpus no longer has them; under `dry_run`, that
            would be.
        quarantined: Rows that are no documents.
        chunks: Records written.
        seconds: Wall time.
        total: Rows of the corpus, where that is known.
        dry_run: Nothing was written.
        interrupted: The ingest was asked to stop before its end.
        refusal: Why missing documents were not deleted, "" if nothing is amiss.
    """

    read: int = 0
    embedded: int = 0
    skipped: int = 0
    deleted: int = 0
    quarantined: int = 0
    chunks: int = 0
    seconds: float = 0.0
    total: int | None = None
    dry_run: bool = False
    interrupted: bool = False
    refusal: str = ""


@dataclass(slots=True)
class CopyReport:
    """Counts of a copy; they grow while it runs.

    Attributes:
        copied: Records written to the target.
        skipped: Records that the target had already.
        total: Records of the source.
        seconds: Wall time.
        interrupted: The copy was asked to stop before its end.
        verified: Whether the target holds just what the source does; None if nobody looked.
        precision: To which the vectors of both are the same: "float32" or "float16".
        checksum: Of what both hold, in hex digits.
    """

    copied: int = 0
    skipped: int = 0
    total: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    verified: bool | None = None
    precision: str = ""
    checksum: str = ""
