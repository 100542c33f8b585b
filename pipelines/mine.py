"""The mining job: pairs → pairs with hard negatives, found by searching an index of the partners.

The index is a store of this project, filled by the model in use; it is kept, so that a second run
with other limits embeds nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from nexus_vdb.chunking import chunk_id
from nexus_vdb.collection import Collection
from nexus_vdb.errors import SourceError
from nexus_vdb.given import GivenSource, as_documents
from nexus_vdb.model.data import Pair, expand, read_pairs, unread
from nexus_vdb.model.mining import Candidate, Tally, choose_negatives
from nexus_vdb.model.teachers import Teacher, find_teacher
from nexus_vdb.pipelines.ingest import ingest, make_ingest
from nexus_vdb.pipelines.train import Bar, Say, no_bar
from nexus_vdb.settings import Settings
from nexus_vdb.stages import slices
from nexus_vdb.types import Floats

__all__ = ["MineSettings", "run_mining", "thrown_away"]

_BATCH = 512

_COLUMNS = pa.schema(
    [
        ("anchor", pa.string()),
        ("positive", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("source", pa.string()),
        ("topic", pa.int32()),
    ]
)


class MineSettings(Settings):
    """Everything a mining run depends on; the keys of `configs/mine.toml`."""

    pairs: list[str]
    out: Path = Path("runs/mined.parquet")
    store: str = ""
    model: str | None = None
    teacher: str | None = None
    device: str = "cpu"
    fields: list[str] = []
    source_weights: dict[str, float] = {}
    max_pairs: int = Field(200_000, ge=1)
    negatives: int = Field(4, ge=1)
    depth: int = Field(50, ge=1)
    share: float = Field(0.95, gt=0, le=1)
    margin: float = Field(0.0, ge=0, le=2)


def run_mining(settings: MineSettings, *, say: Say = lambda line: None, bar: Bar = no_bar) -> Tally:
    """Write `settings.out`, rows of anchor, positive and negatives; returns what was thrown away.

    Raises:
        SourceError: the pairs cannot be read, or there are none.
        ModelError: model or teacher cannot be used.
    """
    pairs = _pairs(settings, say)
    url = settings.store or f"faiss://{settings.out.with_suffix('.index')}"
    with Collection(url, model=settings.model) as collection:
        _index(collection, pairs, bar)
        miner = _Miner(collection, pairs, settings)
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        partial = settings.out.with_name(settings.out.name + ".partial")
        with bar("mining") as update, pq.ParquetWriter(partial, _COLUMNS) as file:
            for some in slices(pairs, _BATCH):
                file.write_table(_table(some, miner.negatives(some)))
                update(miner.tally.anchors, len(pairs), f"{miner.tally.kept:,} negatives")
    partial.replace(settings.out)
    return miner.tally


def _pairs(settings: MineSettings, say: Say) -> list[Pair]:
    paths = expand(settings.pairs)
    rows = read_pairs(paths, fields=settings.fields, weights=settings.source_weights)
    found = list(islice(rows, settings.max_pairs))
    say(f"{len(found):,} pairs read{unread(rows)}")
    if not found:
        raise SourceError("no pairs to mine", hint="give files with pairs of texts")
    return found


def _index(collection: Collection, pairs: Sequence[Pair], bar: Bar) -> None:
    """Fill the store with the partners, each text once; what it has already is left alone."""
    texts = list(dict.fromkeys(pair.b for pair in pairs))
    source = GivenSource(as_documents(texts, ids=None, metadata=None), None)
    settings = make_ingest({"chunk_tokens": collection.encoder.max_tokens, "quarantine": None})
    with bar("indexing") as update:
        ingest(
            collection,
            settings,
            source=source,
            progress=lambda so_far: update(so_far.read, so_far.total, ""),
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """Candidates of one anchor, and the score of its partner."""

    candidates: list[Candidate]
    positive: float


class _Miner:
    def __init__(
        self, collection: Collection, pairs: Sequence[Pair], settings: MineSettings
    ) -> None:
        self.tally = Tally()
        self._collection = collection
        self._settings = settings
        self._partners: dict[str, set[str]] = defaultdict(set)
        for pair, id_ in zip(pairs, _ids(pair.b for pair in pairs), strict=True):
            self._partners[pair.a].add(id_)
        self._teacher: Any = None
        if settings.teacher is not None:
            self._teacher = Teacher(find_teacher(settings.teacher), device=settings.device)

    def negatives(self, pairs: Sequence[Pair]) -> list[list[str]]:
        """Hard negatives of some pairs, the hardest first."""
        found = self._search(pairs)
        if self._teacher is not None:
            found = self._judge(pairs, found)
        settings = self._settings
        return [
            choose_negatives(
                one.candidates,
                partners=self._partners[pair.a],
                positive=one.positive,
                count=settings.negatives,
                share=settings.share,
                margin=settings.margin,
                tally=self.tally,
            )
            for pair, one in zip(pairs, found, strict=True)
        ]

    def _search(self, pairs: Sequence[Pair]) -> list[_Found]:
        collection = self._collection
        queries = collection.embed([pair.a for pair in pairs])
        plan = collection.plan(k=self._settings.depth)
        answers = collection.store.search(queries, plan)
        positives = self._cosines(queries.vectors, [pair.b for pair in pairs])
        return [
            _Found(
                [Candidate(hit.document_id, hit.text, hit.score) for hit in hits], float(positive)
            )
            for hits, positive in zip(answers, positives, strict=True)
        ]

    def _cosines(self, queries: Floats, texts: Sequence[str]) -> Floats:
        """Score of each query with its partner, by the vector the store has of its beginning."""
        keys = [chunk_id(id_, 0) for id_ in _ids(texts)]
        records = self._collection.store.get(list(dict.fromkeys(keys)))
        rows = {key: row for row, key in enumerate(records.ids)}
        partners = records.vectors[[rows[key] for key in keys]]
        return np.asarray((queries * partners).sum(axis=1))

    def _judge(self, pairs: Sequence[Pair], found: Sequence[_Found]) -> list[_Found]:
        """The same candidates with the teacher's scores."""
        texts = [pair.a for pair in pairs] + [pair.b for pair in pairs]
        texts += [candidate.text for one in found for candidate in one.candidates]
        unique = list(dict.fromkeys(texts))
        rows = dict(zip(unique, self._teacher.encode(unique).astype(np.float32), strict=True))
        return [
            _Found(
                [
                    replace(near, score=float(rows[pair.a] @ rows[near.text]))
                    for near in one.candidates
                ],
                float(rows[pair.a] @ rows[pair.b]),
            )
            for pair, one in zip(pairs, found, strict=True)
        ]


def _ids(texts: Iterable[str]) -> list[str]:
    """The ids that the store has given to these partners."""
    return [document.id for document in as_documents(list(texts), ids=None, metadata=None)]


def _table(pairs: Sequence[Pair], negatives: Sequence[list[str]]) -> Any:
    columns = [
        [pair.a for pair in pairs],
        [pair.b for pair in pairs],
        list(negatives),
        [pair.source for pair in pairs],
        [pair.topic for pair in pairs],
    ]
    return pa.Table.from_arrays(
        [pa.array(one, kind.type) for one, kind in zip(columns, _COLUMNS, strict=True)],
        schema=_COLUMNS,
    )


def thrown_away(tally: Tally) -> Iterator[str]:
    """The tally in lines for people."""
    yield f"{tally.anchors:,} anchors, {tally.candidates:,} texts found for them"
    yield f"{tally.kept:,} kept as hard negatives; {tally.without:,} anchors got none"
    yield f"thrown away: {tally.partners:,} partners of the same anchor"
    yield f"thrown away: {tally.too_near:,} too near to the partner's score: false negatives likely"
    yield f"thrown away: {tally.within_margin:,} within the margin below it"
    yield f"not needed:  {tally.surplus:,}"
