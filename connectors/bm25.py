"""BM25 over the texts of any store, by bm25s: the half of a hybrid search that looks at words.

The index is made of a whole store, on the first hybrid search, and serves until the store changes.
A store with `SupportsState` says when that is, and has a folder where the index is kept for the
next time, as `words/KEY`; the key is a digest of what went in. Of another store it is made anew in
each process, and again when the number of records has changed. To make it of 300,000 texts of 200
characters takes 16 s of one core and 1.2 GB of memory; kept, it is 71 MiB, read where it lies.

Okapi BM25 (Robertson et al. 1994) with k1 = 1.2 and b = 0.75, over English stems without stop words
of title and text.
"""

from __future__ import annotations

import contextlib
import shutil
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from nexus_vdb.errors import MissingExtra
from nexus_vdb.filters import Filter, matches
from nexus_vdb.hashing import BITS
from nexus_vdb.interfaces import Store, SupportsState
from nexus_vdb.ranking import Rows, best_rows
from nexus_vdb.types import Floats, Hit, QueryBatch, Records, SearchPlan

try:
    import bm25s
    import Stemmer
    from bm25s.tokenization import Tokenizer
except ImportError as error:
    raise MissingExtra("bm25s", extra="hybrid") from error

__all__ = ["WordIndex", "word_index"]

_K1, _B = 1.2, 0.75
_FORMAT = 1
_FOLDER, _IDS, _SCORES = "words", "ids.npy", "scores"
_BATCH = 1024

Ids = npt.NDArray[np.bytes_]


def word_index(store: Store, known: WordIndex | None = None) -> WordIndex:
    """The index of what a store holds now.

    Args:
        store: Read as a whole if there is no index of it.
        known: Given back if it still holds.
    """
    folder = store.folder if isinstance(store, SupportsState) else None
    state = store.state() if isinstance(store, SupportsState) else str(store.count())
    text = f"{_FORMAT} {bm25s.__version__} {_K1} {_B} {state}"
    key = blake2b(text.encode(), digest_size=12).hexdigest()
    if known is not None and known.key == key:
        return known
    found = None if folder is None else WordIndex.load(folder / _FOLDER, key)
    if found is None:
        found = WordIndex.of(store, key)
        if folder is not None:
            found.save(folder / _FOLDER)
    return found


class WordIndex:
    """Scores of every word in every text.

    Args:
        key: Of the state of the store.
        ids: Record ids as UTF-8, rising.
        scores: By row of `ids`; None where there is not a single word.
    """

    def __init__(self, key: str, ids: Ids, scores: bm25s.BM25 | None) -> None:
        self.key = key
        self._ids = ids
        self._scores = scores

    @classmethod
    def of(cls, store: Store, key: str) -> WordIndex:
        """Read a store; words stay in memory as numbers, some 4 bytes each."""
        tokenizer = Tokenizer(stopwords="english", stemmer=Stemmer.Stemmer("english"))
        ids: list[bytes] = []
        texts = _texts(store, ids)
        words = [
            array("i", found) for found in tokenizer.streaming_tokenize(texts, allow_empty=False)
        ]
        order = np.argsort(np.array(ids, dtype=np.bytes_), kind="stable").tolist()
        scores = None
        if any(words):
            scores = bm25s.BM25(k1=_K1, b=_B)
            corpus = ([words[row] for row in order], tokenizer.get_vocab_dict())
            scores.index(corpus, create_empty_token=False, show_progress=False)
        return cls(key, np.array([ids[row] for row in order], dtype=np.bytes_), scores)

    @classmethod
    def load(cls, folder: Path, key: str) -> WordIndex | None:
        """Open a kept index, memory-mapped; None where there is none that can be read."""
        try:
            ids = np.load(folder / key / _IDS)
            scores = None
            if (folder / key / _SCORES).exists():
                path = folder / key / _SCORES
                scores = bm25s.BM25.load(path, mmap=True, show_progress=False, verbosity=0)
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None
        return cls(key, ids, scores)

    def save(self, folder: Path) -> None:
        """Keep the index and drop older ones; a folder that cannot be written is let be."""
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            made = folder / f"new-{uuid4().hex}"
            made.mkdir()
            try:
                np.save(made / _IDS, self._ids)
                if self._scores is not None:
                    self._scores.save(made / _SCORES, show_progress=False)
                shutil.rmtree(folder / self.key, ignore_errors=True)
                made.rename(folder / self.key)
            finally:
                shutil.rmtree(made, ignore_errors=True)
            for old in folder.iterdir():
                if old.name != self.key:
                    shutil.rmtree(old, ignore_errors=True)

    def search(
        self, store: Store, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[Hit]]:
        """At most k hits per text, best first, equal scores in order of id; none without a word.

        Args:
            store: Gives the records.
            texts: Questions.
            k: Hits for each.
            where: Which records may be found.
        """
        allowed = None if where is None else self._allowed(store, k, where)
        return [self._search(store, text, k, where, allowed) for text in texts]

    def _search(
        self, store: Store, text: str, k: int, where: Filter | None, allowed: Rows | None
    ) -> list[Hit]:
        scores = self._scores_of(text)
        if scores is None:
            return []
        rows = best_rows(scores, k) if where is None else allowed
        rows = np.arange(len(scores)) if rows is None else rows
        rows = rows[scores[rows] > 0]
        # Rows are in order of id: among equal scores they stay so.
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        hits: list[Hit] = []
        for some in _growing(rows, k):
            score_of = dict(zip(self._names(some), scores[some].tolist(), strict=True))
            hits += _hits(store.get(list(score_of)), score_of, where)
            if len(hits) >= k:
                break
        return hits[:k]

    def _allowed(self, store: Store, k: int, where: Filter) -> Rows | None:
        """Rows that match a filter, if to list them is quicker than to try the best ones."""
        count = store.count(where)
        if count * count > k * len(self._ids):
            return None
        info = store.info()
        queries = QueryBatch(
            np.eye(1, info.schema.dim, dtype=np.float32),
            np.zeros((1, BITS), np.float32),
            np.zeros(1, np.uint64),
        )
        plan = SearchPlan(k=max(count, 1), candidates="exact", cuts=info.schema.cuts)
        ids = [hit.id.encode() for hit in store.search(queries, plan, where)[0]]
        found = np.array(ids, dtype=np.bytes_)
        rows = np.searchsorted(self._ids, found)
        rows = rows[rows < len(self._ids)]
        return np.unique(rows[np.isin(self._ids[rows], found)]).astype(np.int64)

    def _names(self, rows: Rows) -> list[str]:
        return [id_.decode() for id_ in self._ids[rows].tolist()]

    def _scores_of(self, text: str) -> Floats | None:
        if self._scores is None:
            return None
        # A stemmer keeps a cache, and is not to be shared between threads.
        [words] = bm25s.tokenize(
            [text], stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False
        )
        known = self._scores.get_tokens_ids(words)
        return np.asarray(self._scores.get_scores_from_ids(known)) if known else None


def _texts(store: Store, ids: list[bytes]) -> Iterator[str]:
    """Title and text of every record, whose ids are appended meanwhile."""
    for records in store.scan(_BATCH):
        ids += [id_.encode() for id_ in records.ids]
        for text, metadata in zip(records.texts, records.metadata, strict=True):
            title = metadata.get("title")
            yield f"{title}\n{text}" if isinstance(title, str) else text


def _growing(rows: Rows, size: int) -> Iterator[Rows]:
    start = 0
    while start < len(rows):
        yield rows[start : start + size]
        start, size = start + size, min(2 * size, _BATCH)


def _hits(records: Records, score_of: dict[str, float], where: Filter | None) -> list[Hit]:
    columns = zip(records.ids, records.document_ids, records.texts, records.metadata, strict=True)
    return [
        Hit(id_, document_id, score_of[id_], text, metadata)
        for id_, document_id, text, metadata in columns
        if where is None or matches(where, metadata)
    ]
