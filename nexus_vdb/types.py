"""The things that flow through the project: frozen columns of equal length, and no logic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "Chunk",
    "Document",
    "Floats",
    "Hit",
    "Metadata",
    "QueryBatch",
    "Records",
    "SearchPlan",
    "StoreInfo",
    "StoreSchema",
]

Metadata = dict[str, Any]
"""JSON values by field name: what a filter can see."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Document:
    """One entry of a corpus, as its source gives it.

    Attributes:
        id: The key under which it is updated and deleted; unique in a store.
        text: What is chunked and embedded.
        metadata: JSON values, kept with every chunk.
        title: Put before the text of every chunk when it is embedded; not part of `text`.
    """

    id: str
    text: str
    metadata: Metadata = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice of a document: `document.text[start:end] == chunk.text`.

    Attributes:
        id: UUIDv5 of document id and ordinal.
        document_id: The document it was cut from.
        ordinal: Its place among the document's chunks, from 0.
        text: The slice itself.
        start: First character of the slice.
        end: One past its last character.
        metadata: The document's.
        title: The document's.
    """

    id: str
    document_id: str
    ordinal: int
    text: str
    start: int
    end: int
    metadata: Metadata = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """What a store holds, as columns of one length n.

    Attributes:
        ids: Chunk ids, UUID strings.
        document_ids: The document each chunk was cut from.
        ordinals: int32 `[n]`.
        texts: The chunks themselves.
        metadata: One dict of JSON values each.
        content_hashes: Hex digest of the document and of how it was embedded.
        vectors: float32 `[n, d]`, unit rows.
        codes: uint64 `[n]`; bit i, least significant first, is `hash_logit_i > 0`. Zeros where
            the store has no hash.
    """

    ids: list[str]
    document_ids: list[str]
    ordinals: npt.NDArray[np.int32]
    texts: list[str]
    metadata: list[Metadata]
    content_hashes: list[str]
    vectors: Floats
    codes: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class QueryBatch:
    """What the encoder makes of q texts. Documents keep `vectors` and `codes` only.

    Attributes:
        vectors: float32 `[q, d]`, unit rows.
        hash_logits: float32 `[q, 64]`, for the asymmetric score; zeros where there is no hash.
        codes: uint64 `[q]`, the signs of `hash_logits`.
    """

    vectors: Floats
    hash_logits: Floats
    codes: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How a search is carried out.

    Attributes:
        k: Hits to return.
        candidates: How many records the hash lets through to the rerank; "exact" compares all of
            them by cosine, "auto" is resolved before it reaches a store.
        cuts: Matryoshka widths of the rerank, narrow to wide; scores are cosines at the last one.
        target_recall: Share of the exact top k that "auto" aims to find.
        probes: Share of a store's coarse lists that the hash scan visits, nearest lists first;
            1 visits everything. Stores without coarse lists, and filtered searches, visit
            everything.
    """

    k: int = 10
    candidates: int | Literal["auto", "exact"] = "auto"
    cuts: tuple[int, ...] = (256, 768)
    target_recall: float = 0.98
    probes: float = 1.0


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer to a query.

    Attributes:
        id: Chunk id.
        document_id: The document it was cut from.
        score: Cosine at the last cut, in [-1, 1]; higher is better.
        text: The chunk.
        metadata: The document's JSON values.
    """

    id: str
    document_id: str
    score: float
    text: str
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class StoreSchema:
    """What is fixed when a store is made.

    Attributes:
        dim: Width of the vectors.
        cuts: Widths kept for search, narrow to wide; the last one is `dim`.
        fingerprint: SHA-256 of the model bundle that makes the vectors; "" for vectors that were
            given ready-made, whose origin nobody can check.
        model: Name or path of that model, for people to read.
    """

    dim: int = 768
    cuts: tuple[int, ...] = (256, 768)
    fingerprint: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store says of itself.

    Attributes:
        url: Where it is.
        schema: What was fixed when it was made.
        count: Records held.
        meta: Small JSON values kept with the store, such as a fitted hash rotation.
        details: Facts of this backend (bytes on disk, segments, engine version), for people.
    """

    url: str
    schema: StoreSchema
    count: int
    meta: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
