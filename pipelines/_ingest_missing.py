"""`--delete-missing`: documents of the store that the corpus no longer has."""

from __future__ import annotations

from collections.abc import Iterator

from nexus_vdb.chunking import chunk_id
from nexus_vdb.corpus import IdSet
from nexus_vdb.interfaces import Store, SupportsIds
from nexus_vdb.reports import IngestReport
from nexus_vdb.stages import slices

__all__ = ["BAD_ROWS", "delete_missing"]

BAD_ROWS = "nothing was deleted: bad rows may be documents that are still there"
_LISTED = 4096
_DELETED = 1000


def delete_missing(
    store: Store, seen: IdSet, report: IngestReport, *, known: int, most: float
) -> Iterator[int]:
    """Delete what was not seen, if the corpus was read without a fault and it is not too much.

    Args:
        store: To delete from.
        seen: Every document of the corpus.
        report: `deleted` grows; `refusal` says why nothing was deleted.
        known: Documents of the corpus that the store had before.
        most: Share of the documents it had before that may be deleted.

    Yields:
        Documents deleted so far: a caller that stops in between leaves whole documents.
    """
    if report.quarantined:
        report.refusal = BAD_ROWS
        return
    missing = sum(1 for _ in _missing(store, seen))
    if missing > most * (known + missing):
        report.refusal = (
            f"nothing was deleted: {missing:,} of {known + missing:,} documents are missing, "
            f"more than max_delete={most}"
        )
        return
    if report.dry_run:
        report.deleted = missing
        return
    for document_ids in slices(list(_missing(store, seen)), _DELETED):
        store.delete(ids=_chunk_ids(store, list(document_ids)))
        report.deleted += len(document_ids)
        yield report.deleted


def _missing(store: Store, seen: IdSet) -> Iterator[str]:
    """Each document once that is in the store only."""
    found = IdSet()
    for ids in _document_ids(store):
        different = list(dict.fromkeys(ids))
        for document_id, there, new in zip(
            different, seen.has(different), found.add_all(different), strict=True
        ):
            if new and not there:
                yield document_id


def _document_ids(store: Store) -> Iterator[list[str]]:
    if isinstance(store, SupportsIds):
        return store.document_ids(_LISTED)
    return (records.document_ids for records in store.scan(_LISTED))


def _chunk_ids(store: Store, document_ids: list[str]) -> list[str]:
    """First chunks first: a document without one is not taken for whole if this is cut off."""
    stored = store.fingerprints(document_ids)
    pairs = [(ordinal, document_id) for document_id in stored for ordinal in stored[document_id]]
    return [chunk_id(document_id, ordinal) for ordinal, document_id in sorted(pairs)]
