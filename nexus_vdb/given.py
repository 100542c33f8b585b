"""Documents that are already in memory, as a source like any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from nexus_vdb.corpus import FieldMap, Row, RowSource
from nexus_vdb.errors import ConfigError
from nexus_vdb.jsonvalue import HALF_PAIR, json_value
from nexus_vdb.types import Document, Floats, Metadata

__all__ = ["GIVEN", "GivenSource", "as_documents"]

GIVEN = FieldMap(id="document id", text="document text", vector="document vector")

_FILE = "the documents given"


class GivenSource(RowSource):
    """Documents that are already in memory; they pass the same checks as rows of a file."""

    def __init__(self, documents: Sequence[Document], vectors: Floats | None) -> None:
        self.fields = GIVEN
        self._documents = documents
        self._vectors = vectors

    def rows(self) -> Iterator[Row]:
        """One row for each document."""
        for number, document in enumerate(self._documents):
            value = {
                **document.metadata,
                GIVEN.id: document.id,
                GIVEN.text: document.text,
            }
            if document.title:
                value[GIVEN.title] = document.title
            if HALF_PAIR.search(json.dumps(json_value(value), ensure_ascii=False)):
                yield Row(_FILE, number + 1, -1, None, problem="half of a surrogate pair")
                continue
            if self._vectors is not None:
                value[str(GIVEN.vector)] = self._vectors[number]
            yield Row(_FILE, number + 1, -1, value)

    def size(self) -> int:
        """How many there are."""
        return len(self._documents)


def as_documents(
    given: Sequence[str | Document],
    *,
    ids: Sequence[str] | None,
    metadata: Sequence[Metadata] | None,
) -> list[Document]:
    """Documents of texts, with a digest as id where none is given.

    Raises:
        ConfigError: the lists differ in length.
    """
    for name, column in (("ids", ids), ("metadata", metadata)):
        if column is not None and len(column) != len(given):
            raise ConfigError(f"{len(column)} {name} for {len(given)} texts")
    return [
        one
        if isinstance(one, Document)
        else Document(ids[row] if ids else _digest(one), one, metadata[row] if metadata else {})
        for row, one in enumerate(given)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
