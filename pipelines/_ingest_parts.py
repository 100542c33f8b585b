"""What flows between the stages of an ingest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nexus_vdb.chunking import chunk_id
from nexus_vdb.types import Chunk, Document, Floats, QueryBatch, Records

__all__ = ["PART", "Part", "Pending", "digest", "groups", "part_records", "whole"]

PART = 512
"""Chunks embedded and written in one call: enough to sort by length, few enough to stop soon."""

_GROUP_CHARACTERS = 4_000_000  # text that waits between two stages


@dataclass(frozen=True, slots=True)
class Pending:
    """A document that has to be written, and what the store has of it: digests by ordinal."""

    document: Document
    digest: str
    stored: Mapping[int, str]
    vector: Floats | None


@dataclass(frozen=True, slots=True)
class Part:
    """Chunks that are embedded and written together.

    Attributes:
        chunks: All of ordinal 0, or none; without those that the store has as they are.
        digests: One for each.
        texts: What is embedded.
        vectors: Ready-made ones, instead; else none.
        stale: Ids to delete once the chunks are written.
        finished: Documents that are done then.
    """

    chunks: Sequence[Chunk]
    digests: list[str]
    texts: list[str]
    vectors: list[Floats]
    stale: list[str]
    finished: int


def groups(pending: Iterable[Pending]) -> Iterator[list[Pending]]:
    """Lists that are large enough to embed well, and small enough to hold."""
    group: list[Pending] = []
    characters = 0
    for one in pending:
        group.append(one)
        characters += len(one.document.text)
        if len(group) == PART or characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def digest(document: Document, vector: Floats | None, how: list[Any]) -> str:
    """Of everything that decides the records of a document."""
    what = [document.text, document.title, document.metadata, how]
    total = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    if vector is not None:
        total.update(np.ascontiguousarray(vector, dtype="<f4").tobytes())
    return total.hexdigest()[:32]


def whole(document: Document) -> Chunk:
    """The one chunk of a document whose vector is ready-made."""
    key = chunk_id(document.id, 0)
    text = document.text
    return Chunk(key, document.id, 0, text, 0, len(text), document.metadata, document.title)


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
