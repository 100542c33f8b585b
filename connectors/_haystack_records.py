"""Haystack's documents as those of a collection, and back."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from nexus_vdb.errors import DimensionMismatch, MissingExtra
from nexus_vdb.types import Document as NexusDocument
from nexus_vdb.types import Floats, Metadata, Records

try:
    from haystack import Document
    from haystack.document_stores.errors import DocumentStoreError
except ImportError as error:
    raise MissingExtra("haystack-ai", extra="haystack") from error

__all__ = ["UNEMBEDDED", "check_documents", "document_of", "kept", "shown", "vectors_of"]

UNEMBEDDED = "_unembedded"
"""Marks a document without an embedding in its metadata, and a store that has such."""


def check_documents(documents: list[Document]) -> None:
    """Refuse what cannot be written.

    Raises:
        ValueError: it is no list of documents.
        DocumentStoreError: a document has no text, or what would be lost.
    """
    if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
        # Haystack's own kind of error for it, which its test suite asks for.
        raise ValueError("write_documents takes a list of haystack Documents")  # noqa: TRY004
    for one in documents:
        if not (one.content or "").strip():
            raise DocumentStoreError(f"document {one.id!r} has no text")
        if one.blob is not None or one.sparse_embedding is not None:
            raise DocumentStoreError(f"blob and sparse embedding of {one.id!r} cannot be kept")


def kept(document: Document) -> NexusDocument:
    """What a collection keeps of a document, besides its embedding."""
    mark = {UNEMBEDDED: True} if document.embedding is None else {}
    return NexusDocument(document.id, document.content or "", {**document.meta, **mark})


def vectors_of(documents: Sequence[Document], dim: int) -> Floats:
    """Embeddings, float32 `[n, dim]`; random directions where there is none.

    Raises:
        DimensionMismatch: one is of another width.
    """
    vectors = np.empty((len(documents), dim), dtype=np.float32)
    for row, one in enumerate(documents):
        if one.embedding is None:
            # Not all the same one: a hash that is fitted on the store would suffer from that.
            vectors[row] = np.random.default_rng(crc32(one.id.encode())).standard_normal(dim)
        elif len(one.embedding) != dim:
            raise DimensionMismatch(
                f"the store holds embeddings of {dim} dimensions, "
                f"document {one.id!r} has one of {len(one.embedding)}",
                hint="give NexusDocumentStore the right embedding_dim",
            )
        else:
            vectors[row] = one.embedding
    return vectors


def document_of(records: Records, row: int) -> Document:
    """A record as Haystack's document."""
    unembedded = UNEMBEDDED in records.metadata[row]
    return Document(
        id=records.document_ids[row],
        content=records.texts[row],
        meta=shown(records.metadata[row]),
        embedding=None if unembedded else records.vectors[row].tolist(),
    )


def shown(metadata: Metadata) -> Metadata:
    """Metadata as it was given."""
    return {name: value for name, value in metadata.items() if name != UNEMBEDDED}
