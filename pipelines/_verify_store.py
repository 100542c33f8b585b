"""What a verification finds in the store, and how it is mended."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nexus_vdb.chunking import chunk_id
from nexus_vdb.collection import Collection
from nexus_vdb.corpus import IdSet
from nexus_vdb.interfaces import Encoder, Source, Store
from nexus_vdb.pipelines._verify_parts import Selected, codes_differ, implausible
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.ranking import cosines, cut_vectors
from nexus_vdb.reports import VerifyReport
from nexus_vdb.search import check_model, stored_hash, vector_queries
from nexus_vdb.stages import slices
from nexus_vdb.tables import scan_tables, vectors_of
from nexus_vdb.types import Floats, QueryBatch, Records, StoreInfo

__all__ = ["Findings", "Sampled", "embed_again", "look_at_vectors", "look_for_extra", "mend"]

_SCAN = 4096
_DELETE = 1000
_EXAMPLES = 10
_SAME = 0.999  # cosine of a text's vector with that of the same text, embedded in another batch


@dataclass(slots=True)
class Findings:
    """The report, and what has to be mended.

    Attributes:
        report: Grows.
        documents: To be ingested again.
        records: Ids to delete before.
        extra: Ids of records that the corpus does not have.
        extra_documents: Documents of the store that it does not have.
        stored_documents: Documents of the store.
    """

    report: VerifyReport
    documents: set[str] = field(default_factory=set)
    records: set[str] = field(default_factory=set)
    extra: list[str] = field(default_factory=list)
    extra_documents: set[str] = field(default_factory=set)
    stored_documents: int = 0

    def document(self, kind: str, document_id: str) -> None:
        """Count a document that is not as it should be."""
        setattr(self.report, kind, getattr(self.report, kind) + 1)
        self.documents.add(document_id)
        self.example(kind, document_id)

    def record(self, kind: str, id_: str, document_id: str) -> None:
        """Count a record that is not as it should be."""
        setattr(self.report, kind, getattr(self.report, kind) + 1)
        self.documents.add(document_id)
        # An ingest takes a document without its first chunk for one that is not done.
        self.records |= {id_, chunk_id(document_id, 0)}
        self.example(kind, id_)

    def example(self, kind: str, name: str) -> None:
        """Name one of a kind in the report, if it has not enough of them."""
        examples = self.report.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES and name not in examples:
            examples.append(name)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A record to be embedded again: by its text, or by the vector that its source has."""

    id: str
    text: str
    vector: Floats | None


def look_for_extra(store: Store, seen: IdSet, found: Findings) -> None:
    """Find records of no document of the corpus, or that are none of its chunks; and odd vectors.

    Args:
        store: Is read once.
        seen: Every document of the corpus; those of the store are added.
        found: Grows.
    """
    documents = IdSet()
    for table in scan_tables(store, _SCAN):
        names = ("id", "document_id", "ordinal")
        ids, owners, ordinals = (table.column(name).to_pylist() for name in names)
        found.stored_documents += sum(documents.add_all(owners))
        new = seen.add_all(owners)
        for id_, owner, ordinal, first in zip(ids, owners, ordinals, new, strict=True):
            unknown = first or owner in found.extra_documents
            if unknown:
                found.extra_documents.add(owner)
            if unknown or id_ != chunk_id(owner, ordinal):
                found.extra.append(id_)
                found.example("extra", owner)
        look_at_vectors(ids, owners, vectors_of(table), found)
    found.report.extra = len(found.extra)


def look_at_vectors(
    ids: Sequence[str], document_ids: Sequence[str], vectors: Floats, found: Findings
) -> None:
    """Count vectors `[n, d]` that cannot be right."""
    found.report.records += len(ids)
    for row in np.flatnonzero(implausible(vectors)).tolist():
        found.record("bad_vectors", ids[row], document_ids[row])


def embed_again(
    store: Store, asked: Sequence[Sampled], encoder: Encoder | None, found: Findings
) -> None:
    """Compare vectors and codes of some records with what the model, or the source, makes now."""
    there = {one.id: one for one in asked}
    records, info, report = store.get(list(there)), store.info(), found.report
    if not len(records):
        return
    again = _queries([there[id_] for id_ in records.ids], encoder)
    units = cut_vectors(records.vectors, info.schema.dim)
    pairs = zip(units, again.vectors, strict=True)
    near = np.array([cosines(one[None], other)[0] for one, other in pairs])
    wrong = ~(near > _SAME) | _wrong_codes(info, records, again)
    report.embedded_again = len(records)
    report.least_cosine = round(float(near.min()), 6)
    for row in np.flatnonzero(wrong).tolist():
        found.record("differing", records.ids[row], records.document_ids[row])


def _queries(asked: Sequence[Sampled], encoder: Encoder | None) -> QueryBatch:
    if encoder is not None:
        return encoder.encode([one.text for one in asked])
    given = [one.vector for one in asked if one.vector is not None]
    return vector_queries(np.stack(given), None)


def _wrong_codes(info: StoreInfo, records: Records, again: QueryBatch) -> Any:
    itq = stored_hash(info)
    if itq is not None:
        return codes_differ(records.codes, itq.logits(records.vectors))
    if info.meta.get("hash") == "model":
        return codes_differ(records.codes, again.hash_logits)
    return np.zeros(len(records), dtype=bool)


def mend(
    collection: Collection,
    found: Findings,
    *,
    source: Source,
    settings: IngestSettings,
    max_delete: float,
    stop: threading.Event,
) -> None:
    """Delete what is extra, if that is not too much, and ingest the documents that are not right.

    Raises:
        FingerprintMismatch: the store was filled by another model.
    """
    report, store = found.report, collection.store
    if settings.vector_field is None:
        check_model(store.info(), collection.encoder)
    report.refusal = _refusal(found, max_delete) if found.extra else ""
    if not report.refusal:
        for some in slices(found.extra, _DELETE):
            store.delete(ids=some)
        report.deleted = len(found.extra)
    if found.documents - found.extra_documents:
        for some in slices(sorted(found.records), _DELETE):
            store.delete(ids=some)
        only = Selected(source, found.documents)
        done = ingest(collection, settings, source=only, stop=stop)
        report.repaired, report.interrupted = done.embedded, done.interrupted
    report.mended = not report.refusal and not report.interrupted


def _refusal(found: Findings, max_delete: float) -> str:
    """Why what the corpus does not have is left where it is, "" if it may go."""
    if found.report.quarantined:
        return "nothing was deleted: bad rows may be documents that are still there"
    gone, there = len(found.extra_documents), found.stored_documents
    if gone > max_delete * there:
        return (
            f"nothing was deleted: {gone:,} of {there:,} documents are not in the corpus, "
            f"more than max_delete={max_delete}"
        )
    return ""
