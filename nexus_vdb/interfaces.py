"""The seams: what a source, a store and an encoder must do, and nothing of how.

Implementations need not inherit from these; `nexus_vdb.testing` has the contract tests that a new
one must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nexus_vdb.errors import StoreCorrupt
from nexus_vdb.filters import Filter
from nexus_vdb.types import (
    Document,
    Floats,
    Hit,
    QueryBatch,
    Records,
    SearchPlan,
    StoreInfo,
)

__all__ = [
    "BadRow",
    "Encoder",
    "Source",
    "Store",
    "SupportsCheck",
    "SupportsDepths",
    "SupportsHeads",
    "SupportsIds",
    "SupportsOptimize",
    "SupportsRecode",
    "SupportsSample",
    "SupportsState",
    "SupportsTables",
    "SupportsVectors",
    "TokenCounter",
]


class BadRow(Protocol):
    """Called by a source for each row it cannot turn into a document."""

    def __call__(self, *, file: str, row: int, offset: int, reason: str, raw: bytes) -> None:
        """Record the row; may raise to stop the read.

        Args:
            file: Path or URL of the file.
            row: Row number in the file, from 1.
            offset: Byte offset of the row in the uncompressed file; -1 where the format has none.
            reason: Why it was refused, in one line.
            raw: The row as it stands in the file (for columnar formats: as JSON).
        """


class Source(Protocol):
    """A corpus that is streamed: never a whole file in memory."""

    def read(self, *, batch_size: int, on_bad_row: BadRow) -> Iterator[list[Document]]:
        """Yield documents in file order, in lists of at most `batch_size`.

        A row that cannot be used goes to `on_bad_row` and the read goes on with the next one. So
        does what is lost of a damaged file, as one row with no raw bytes, and the read goes on with
        the next file.

        Raises:
            SourceError: nothing can be read.
        """

    def size(self) -> int | None:
        """Rows in the corpus if that is known without reading it, else None."""


@runtime_checkable
class SupportsVectors(Protocol):
    """A source whose rows may bring their own vectors."""

    def read_with_vectors(
        self, *, batch_size: int, on_bad_row: BadRow
    ) -> Iterator[tuple[list[Document], Floats]]:
        """As `Source.read`, with the vector of each document, float32 `[n, d]`, of any length."""


class TokenCounter(Protocol):
    """The part of an encoder that chunking needs."""

    @property
    def max_tokens(self) -> int:
        """Tokens of one text that the model sees; the rest would be cut off."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens in each text; of ASCII at most one a character, and a few around them."""


class Encoder(TokenCounter, Protocol):
    """Turns texts into unit vectors and hash logits; the same text gives the same row."""

    @property
    def name(self) -> str:
        """Bundle name or path, for people."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the vectors."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""

    @property
    def cuts(self) -> tuple[int, ...]:
        """Widths at which a renormalised prefix is itself a good vector, narrow to wide."""

    def encode(self, texts: Sequence[str]) -> QueryBatch:
        """Embed texts, in their order. An empty list gives a batch of length 0."""


@runtime_checkable
class SupportsHeads(Protocol):
    """An encoder whose vectors are fused of several, which can be had by themselves."""

    def encode_heads(self, texts: Sequence[str]) -> tuple[QueryBatch, dict[str, Floats]]:
        """As `Encoder.encode`, and by head the unit vectors, float32 `[n, d]`, of the same run."""


class Store(Protocol):
    """Records by id, and search over them.

    A store class also has `open(url, schema=None)`, a classmethod: without a schema it opens what
    is there and raises `StoreNotFound` otherwise; with one it makes the store if it is missing, and
    raises `DimensionMismatch` or `FingerprintMismatch` if it is there and differs (a store with an
    empty fingerprint accepts any, and so does a schema with one).
    """

    def upsert(self, records: Records) -> None:
        """Write records, replacing those of the same id; durable when it returns.

        Writing the same records twice leaves one of each. Where an id stands twice in one call, the
        last row wins. Zero records are fine.

        Raises:
            DimensionMismatch: the vectors are of another width than the schema's.
        """

    def search(
        self, queries: QueryBatch, plan: SearchPlan, where: Filter | None = None
    ) -> list[list[Hit]]:
        """At most `plan.k` hits per query, best first; equal scores in order of id.

        The filter applies before the hash scan: k matching records are found where k exist.
        `plan.candidates` is a number or "exact", never "auto".
        """

    def get(self, ids: Sequence[str]) -> Records:
        """The records of these ids, in this order; unknown ids are left out."""

    def fingerprints(self, document_ids: Sequence[str]) -> dict[str, dict[int, str]]:
        """Content hash by chunk ordinal, for each of the documents that is there at all."""

    def delete(self, *, ids: Sequence[str] | None = None, where: Filter | None = None) -> int:
        """Delete by id or by filter (exactly one of them); returns how many records went."""

    def scan(self, batch_size: int = 1024) -> Iterator[Records]:
        """Every record once, in batches, in no promised order."""

    def count(self, where: Filter | None = None) -> int:
        """How many records there are, or match."""

    def info(self) -> StoreInfo:
        """What is stored, and how."""

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a small JSON value with the store, durably; read it back by `info().meta`."""

    def close(self) -> None:
        """Release files, locks and connections; a second call does nothing."""


@runtime_checkable
class SupportsCheck(Protocol):
    """A store class that can tell whether what it keeps is still as it was written."""

    @classmethod
    def check(
        cls, url: str, progress: Callable[[int, int], None] | None = None
    ) -> list[StoreCorrupt]:
        """Read everything; a class method, for a damaged store may not open.

        Args:
            url: Of the store.
            progress: Told how many bytes were read, and of how many.

        Returns:
            An error for each damaged file, which names it; none if all is well.

        Raises:
            StoreNotFound: there is none.
        """


@runtime_checkable
class SupportsConcurrentReads(Protocol):
    """A store that may be read from other threads while one writes to it.

    A read finds what was there before a write or after it, nothing in between.
    """

    concurrent_reads: Literal[True]


@runtime_checkable
class SupportsIds(Protocol):
    """A store that can list its documents without reading their records."""

    def document_ids(self, batch_size: int = 4096) -> Iterator[list[str]]:
        """The document of every record, in no promised order: one of n chunks comes n times."""


@runtime_checkable
class SupportsOptimize(Protocol):
    """A store that gains from tidying up after many writes."""

    def optimize(self) -> None:
        """Merge, reindex or compact; searches give the same hits before and after."""


@runtime_checkable
class SupportsSample(Protocol):
    """A store that can draw records without reading all of them."""

    def sample(self, count: int, *, seed: int = 0) -> Records:
        """`count` different records drawn evenly from the whole store; all, if it has fewer.

        In any order: some of them are not a sample by themselves.
        """


@runtime_checkable
class SupportsDepths(Protocol):
    """A store that can tell what a search by hash would find, without making it."""

    def depths(
        self, queries: QueryBatch, ids: Sequence[Sequence[str]], probes: Sequence[float]
    ) -> list[npt.NDArray[np.int64]]:
        """How many candidates it takes to have some records among them.

        Args:
            queries: What is looked for.
            ids: Of each query: records that are there.
            probes: Shares of the lists that a search visits, rising.

        Returns:
            For each query `[k, p]`; more than there are records where the lists visited do not
            have the record.
        """


@runtime_checkable
class SupportsRecode(Protocol):
    """A store that can give its records new codes without rewriting them."""

    def recode(self, codes_of: Callable[[Floats], npt.NDArray[np.uint64]]) -> None:
        """Replace every code by that of its vector; durable when it returns.

        Other processes may see some records with old codes and some with new ones meanwhile: the
        caller undeclares the hash (meta value "hash") first, and declares it again afterwards.

        Args:
            codes_of: Codes uint64 `[n]` of vectors float32 `[n, d]`.
        """


@runtime_checkable
class SupportsState(Protocol):
    """A store that says when what was made of its records is out of date."""

    @property
    def folder(self) -> Path | None:
        """Where such things may be kept, each in a folder of its own; None if nowhere."""

    def state(self) -> str:
        """The same only as long as the records are; a store made anew may repeat itself."""


@runtime_checkable
class SupportsTables(Protocol):
    """A store that takes and gives Arrow batches, with no Python object for each value.

    Their columns are those of `nexus_vdb.tables`.
    """

    def scan_tables(self, batch_size: int = 1024) -> Iterator[Any]:
        """As `Store.scan`, each batch a `pyarrow.RecordBatch`."""

    def upsert_tables(self, tables: Iterable[Any]) -> None:
        """As `Store.upsert`, of `pyarrow.RecordBatch`es, of which one is held at a time."""
