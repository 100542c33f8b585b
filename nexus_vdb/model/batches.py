"""Training batches, as a function of the step alone, so that a resumed run sees the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nexus_vdb.errors import ConfigError
from nexus_vdb.model.data import TokenTable
from nexus_vdb.model.lexicon import Lexicon
from nexus_vdb.model.schedule import Schedule

__all__ = ["Batch", "Negatives", "PairBatches", "TextBatch", "text_batches"]

TextBatch = tuple[Tensor, Tensor]
"""Ids and mask of some texts, int64 `[n, T]`."""

_BUCKET = 64  # batches sorted by length together: little padding, yet mixed neighbours


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B pairs and H negatives of each.

    Attributes:
        sides: Ids and mask int64 `[n, T]` of the first texts (n = B), of their partners (B) and,
            where there are negatives, of these (B · H, those of a pair together).
        duplicates: bool `[B, B + B · H]`; true where a partner of another pair, or a negative, is
            none: it belongs to the pair, or stands in for a negative that is not there.
        lexical: Cosines of the exact bags `[2B, 2B]`, first texts before partners.
        teacher: The teacher's vectors `[2B, semantic dim]`, or None.
        topics: int64 `[2B]`, -1 where unknown, or None.
    """

    sides: tuple[tuple[Tensor, Tensor], ...]
    duplicates: Tensor
    lexical: Tensor
    teacher: Tensor | None
    topics: Tensor | None

    def __len__(self) -> int:
        return len(self.sides[0][0])


@dataclass(frozen=True, slots=True, eq=False)
class Negatives:
    """Mined negatives of n pairs.

    Attributes:
        texts: Tokens of all of them.
        starts: int64 `[n + 1]`; pair i has `texts[starts[i]:starts[i + 1]]`.
        keys: int64 `[len(texts)]`, equal for equal texts, in the same count as those of the pairs.
    """

    texts: TokenTable
    starts: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]

    def draw(
        self, rows: npt.NDArray[np.int64], count: int, random: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Places in `texts` `[len(rows), count]`, and which of them stand for one not there."""
        there = (self.starts[1:] - self.starts[:-1])[rows, None]
        # A random beginning, then one after the other: different ones as long as they last.
        steps = random.integers(0, 1 << 31, (len(rows), 1)) + np.arange(count)
        places = self.starts[rows, None] + steps % np.maximum(there, 1)
        missing = np.arange(count) >= there
        return np.where(missing, 0, places), missing


@dataclass(frozen=True, slots=True, eq=False)
class PairBatches:
    """The pairs of a run.

    Attributes:
        a: Tokens of the first texts.
        b: Tokens of their partners.
        keys: int64 `[n, 2]`, equal for equal texts: those are no negatives of one another.
        lexicon: What the entity head learns from.
        teacher: float16 `[2, n, semantic dim]` targets of both sides, or None.
        topics: int64 `[2, n]` labels, or None.
        negatives: Mined ones, or None.
    """

    a: TokenTable
    b: TokenTable
    keys: npt.NDArray[np.int64]
    lexicon: Lexicon
    teacher: npt.NDArray[np.float16] | None = None
    topics: npt.NDArray[np.int64] | None = None
    negatives: Negatives | None = None

    def rows(self, number: int, schedule: Schedule) -> npt.NDArray[np.int64]:
        """Which pairs make a batch."""
        per_epoch = len(self.a) // schedule.batch
        if not per_epoch:
            raise ConfigError(f"batch={schedule.batch} is more than the {len(self.a)} pairs given")
        epoch, place = divmod(number, per_epoch)
        random = np.random.default_rng((schedule.seed, epoch))
        order = random.permutation(len(self.a))[: per_epoch * schedule.batch]
        lengths = self.a.lengths + self.b.lengths
        span = _BUCKET * schedule.batch
        buckets = [order[i : i + span] for i in range(0, len(order), span)]
        order = np.concatenate([rows[np.argsort(lengths[rows])] for rows in buckets])
        batches = order.reshape(per_epoch, schedule.batch)
        return np.asarray(batches[random.permutation(per_epoch)[place]])

    def at(self, number: int, schedule: Schedule, *, device: str = "cpu") -> Batch:
        """The batch of a number, from 0."""
        rows = self.rows(number, schedule)
        same = self.keys[rows][:, None, :] == self.keys[rows][None, :, :]
        duplicates = same.any(-1) & ~np.eye(len(rows), dtype=bool)
        sides = [self.a.padded(rows), self.b.padded(rows)]
        if self.negatives is not None and schedule.hard_negatives:
            random = np.random.default_rng((schedule.seed, number, 1))
            places, missing = self.negatives.draw(rows, schedule.hard_negatives, random)
            sides.append(self.negatives.texts.padded(places.ravel()))
            own = self.negatives.keys[places.ravel()] == self.keys[rows][:, 1:]
            duplicates = np.concatenate([duplicates, own | missing.ravel()], axis=1)

        def tensor(values: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(values).to(device)

        def both(values: npt.NDArray[Any] | None) -> Tensor | None:
            return None if values is None else tensor(np.concatenate(values[:, rows]))

        return Batch(
            tuple((tensor(ids), tensor(mask)) for ids, mask in sides),
            tensor(duplicates),
            tensor(self.lexicon.cosines([t[row] for t in (self.a, self.b) for row in rows])),
            both(self.teacher),
            both(self.topics),
        )


def text_batches(table: TokenTable, rows: npt.NDArray[np.int64]) -> Iterator[TextBatch]:
    """Ids and masks of some texts, int64 `[n, T]`, a hundred or so at a time."""
    for part in np.array_split(rows, max(1, len(rows) // 128)):
        ids, mask = table.padded(part)
        yield torch.from_numpy(ids), torch.from_numpy(mask)
