"""What jobs report when they are done, and while they run."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CopyReport", "IngestReport", "VerifyReport"]


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
        reading: Seconds spent on reading; the three below run side by side.
        embedding: Seconds spent on embedding.
        writing: Seconds spent on writing.
        finishing: Seconds spent in the end on tidying up, choosing the hash and measuring recall.
        retries: Requests that were made again because the store did not answer.
        total: Rows of the corpus, where that is known; about so many while it runs.
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
    reading: float = 0.0
    embedding: float = 0.0
    writing: float = 0.0
    finishing: float = 0.0
    retries: int = 0
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


@dataclass(slots=True)
class VerifyReport:
    """Counts of a verification; they grow while it runs.

    Attributes:
        read: Documents of the corpus that were read.
        checked: Documents compared with the store.
        share: Of those read.
        records: Records of the store whose vectors were looked at.
        missing: Documents that the store does not have.
        stale: Documents that have changed since.
        incomplete: Documents with too few chunks, or too many.
        wrong_fingerprint: Documents that are the same, but were embedded otherwise: by another
            model, or with other settings.
        extra: Records that the corpus does not have; None where not all of it was looked at.
        bad_vectors: Records whose vector is not finite, or not of length 1.
        embedded_again: Records that were embedded again for comparison.
        differing: Those whose vector or code is not what the model makes.
        least_cosine: The least cosine between old and new vectors among them.
        quarantined: Rows of the corpus that are no documents.
        examples: Some document ids of each kind; record ids of the kinds that concern vectors.
        repaired: Documents ingested again to mend them.
        deleted: Extra records deleted to mend the store.
        mended: Everything that was found was mended.
        refusal: Why extra records were not deleted, "" if nothing is amiss.
        total: Rows of the corpus, where that is known.
        interrupted: The verification was asked to stop before its end.
        seconds: Wall time.
    """

    read: int = 0
    checked: int = 0
    share: float = 0.0
    records: int = 0
    missing: int = 0
    stale: int = 0
    incomplete: int = 0
    wrong_fingerprint: int = 0
    extra: int | None = None
    bad_vectors: int = 0
    embedded_again: int = 0
    differing: int = 0
    least_cosine: float | None = None
    quarantined: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)
    repaired: int = 0
    deleted: int = 0
    mended: bool = False
    refusal: str = ""
    total: int | None = None
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        """Everything that is not as it should be, before it was mended."""
        documents = self.missing + self.stale + self.incomplete + self.wrong_fingerprint
        return documents + (self.extra or 0) + self.bad_vectors + self.differing

    @property
    def sound(self) -> bool:
        """Whether there are no faults, or all of them were mended."""
        return not self.faults or self.mended
