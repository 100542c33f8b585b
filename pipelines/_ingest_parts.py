"""What flows between the stages of an ingest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nexus_vdb.chunking import chunk_id
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.records import join_records
from nexus_vdb.types import Chunk, Document, Floats, QueryBatch, Records

__all__ = [
    "GROUP",
    "PART",
    "Made",
    "Part",
    "Pending",
    "digest",
    "groups",
    "how_made",
    "is_done",
    "joined",
    "little_endian",
    "packed",
    "part_records",
    "whole",
    "whole_records",
]

GROUP = 512
"""Documents cut together."""

PART = 2048
"""Work of one call of the encoder, as `_work` counts it: enough to sort texts by length and to keep
all cores busy, little enough to stop soon."""

_WORK_CHARACTERS = 256

_canonical = json.JSONEncoder(sort_keys=True).encode  # `json.dumps` makes one for each call
_quoted = json.encoder.encode_basestring_ascii

_BRIEF = 2047
"""Bytes that `hashlib` takes in without letting other threads run, which would cost more time."""

_GROUP_CHARACTERS = 4_000_000  # text that waits between two stages


@dataclass(frozen=True, slots=True)
class Pending:
    """A document that has to be written.

    Attributes:
        document: As it was read.
        digest: See `digest`.
        stored: Digest by ordinal of the chunks that the store has.
    """

    document: Document
    digest: str
    stored: Mapping[int, str]


@dataclass(slots=True)
class Part:
    """Chunks that are embedded together.

    Attributes:
        chunks: In the order in which they are written: of each document the first one last.
        digests: One for each.
        stale: Ids to delete once the chunks are written.
        finished: Documents that are done once this is written.
        goes_on: The last document has more chunks, in the next part.
        work: Of its chunks, see `PART`.
    """

    chunks: list[Chunk] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    finished: int = 0
    goes_on: bool = False
    work: int = 0

    def add(self, one: Pending, chunks: Sequence[Chunk]) -> None:
        """Chunks of a document."""
        self.chunks += chunks
        self.work += sum(map(_work, chunks))
        self.digests += [one.digest] * len(chunks)


@dataclass(frozen=True, slots=True)
class Made:
    """A part with its records.

    Attributes:
        records: To be written; None once they are, and where nothing is written.
        chunks: How many there are.
        stale: See `Part`, as for the other two.
        finished: …
        goes_on: …
    """

    records: Records | None
    chunks: int
    stale: list[str]
    finished: int
    goes_on: bool

    @classmethod
    def of(cls, part: Part, records: Records | None) -> Made:
        """What is made of a part."""
        return cls(records, len(part.chunks), part.stale, part.finished, part.goes_on)


def how_made(fingerprint: str, chunk_tokens: int, chunk_overlap: int) -> str:
    """What decides the records of a document beside the document itself, as JSON."""
    return _canonical([fingerprint, chunk_tokens, chunk_overlap])


def little_endian(vectors: Floats) -> Floats:
    """The same numbers, in the bytes that are digested."""
    return np.ascontiguousarray(vectors, dtype="<f4")


def digest(document: Document, vector: Floats | None, how: str) -> str:
    """Of everything that decides the records of a document.

    Args:
        document: As it was read.
        vector: Ready-made, a row of what `little_endian` gives; None where there is none.
        how: See `how_made`.
    """
    metadata = _canonical(document.metadata) if document.metadata else "{}"
    # A list in JSON, put together here: `_canonical` of the whole takes four times as long.
    what = f"[{_quoted(document.text)}, {_quoted(document.title)}, {metadata}, {how}]"
    total = hashlib.sha256(what.encode())
    if vector is not None:
        octets = vector.view(np.uint8).data
        for start in range(0, len(octets), _BRIEF):
            total.update(octets[start : start + _BRIEF])
    return total.hexdigest()[:32]


def is_done(stored: Mapping[int, str], digest: str) -> bool:
    """Whether a store with these digests by ordinal has the whole document as it is now.

    The first chunk is written last, so that the others are there if it is.
    """
    return 0 in stored and len(stored) == max(stored) + 1 and set(stored.values()) == {digest}


def groups(pending: Iterable[Pending], size: int) -> Iterator[list[Pending]]:
    """Lists that are large enough to cut and embed well, and small enough to hold."""
    group: list[Pending] = []
    characters = 0
    for one in pending:
        group.append(one)
        characters += len(one.document.text)
        if len(group) == size or characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def packed(documents: Iterable[tuple[Pending, list[Chunk]]], size: int) -> Iterator[Part]:
    """Parts of at most so much work; a document with no more than that is in one of them.

    Chunks that the store has already, from a run that was cut off, are left out.
    """
    part = Part()
    for one, chunks in documents:
        missing = [chunk for chunk in chunks if one.stored.get(chunk.ordinal) != one.digest]
        if missing and missing[0].ordinal == 0:
            missing.append(missing.pop(0))
        full = part.work + sum(map(_work, missing)) > size or part.finished >= size
        if part.finished and full:
            yield part
            part = Part()
        for some in _portions(missing, size):
            if part.goes_on:
                yield part
                part = Part()
            part.add(one, some)
            part.goes_on = True
        part.goes_on = False
        part.finished += 1
        part.stale += [
            chunk_id(one.document.id, ordinal) for ordinal in one.stored if ordinal >= len(chunks)
        ]
    if part.finished:
        yield part


def _work(chunk: Chunk) -> int:
    """A short text, or as many characters of a longer one, is one."""
    return max(1, len(chunk.text) // _WORK_CHARACTERS)


def _portions(chunks: Sequence[Chunk], size: int) -> Iterator[Sequence[Chunk]]:
    """Consecutive chunks, together of at most so much work, but at least one of them."""
    start = work = 0
    for end, chunk in enumerate(chunks):
        work += _work(chunk)
        if work > size and end > start:
            yield chunks[start:end]
            start, work = end, _work(chunk)
    if chunks:
        yield chunks[start:]


def whole(document: Document) -> Chunk:
    """The one chunk of a document whose vector is ready-made."""
    key = chunk_id(document.id, 0)
    text = document.text
    return Chunk(key, document.id, 0, text, 0, len(text), document.metadata, document.title)


def whole_records(documents: Sequence[Document], digests: list[str], vectors: Floats) -> Records:
    """What is written of documents with ready-made vectors `[n, d]`; codes are still to come."""
    return Records(
        ids=[chunk_id(document.id, 0) for document in documents],
        document_ids=[document.id for document in documents],
        ordinals=np.zeros(len(documents), dtype=np.int32),
        texts=[document.text for document in documents],
        metadata=[document.metadata for document in documents],
        content_hashes=digests,
        vectors=cut_vectors(vectors, vectors.shape[1]),
        codes=np.zeros(len(documents), dtype=np.uint64),
    )


def part_records(part: Part, queries: QueryBatch) -> Records:
    """What is written: the chunks of a part with their vectors and codes."""
    chunks = part.chunks
    return Records(
        ids=[chunk.id for chunk in chunks],
        document_ids=[chunk.document_id for chunk in chunks],
        ordinals=np.array([chunk.ordinal for chunk in chunks], dtype=np.int32),
        texts=[chunk.text for chunk in chunks],
        metadata=[chunk.metadata for chunk in chunks],
        content_hashes=part.digests,
        vectors=queries.vectors,
        codes=queries.codes,
    )


def joined(parts: Sequence[Made]) -> Made:
    """Several parts as one."""
    if len(parts) == 1:
        return parts[0]
    records = [part.records for part in parts if part.records is not None]
    return Made(
        join_records(records) if records else None,
        sum(part.chunks for part in parts),
        [id_ for part in parts for id_ in part.stale],
        sum(part.finished for part in parts),
        parts[-1].goes_on,
    )
