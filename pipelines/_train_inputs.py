"""What goes into a training run: pairs, tokens, teacher vectors, topics, mined negatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from nexus_vdb.errors import ConfigError, SourceError
from nexus_vdb.model import initialize
from nexus_vdb.model.batches import Negatives, PairBatches
from nexus_vdb.model.config import NexusConfig
from nexus_vdb.model.data import Pair, TokenTable, cut_text, expand, read_pairs, unread
from nexus_vdb.model.lexicon import Lexicon, term_of_piece
from nexus_vdb.model.teachers import Teacher, find_teacher
from nexus_vdb.model.tokenizer import piece_texts
from nexus_vdb.pipelines._train_settings import TrainSettings

__all__ = ["Bar", "Prepared", "Say", "Update", "no_bar", "prepare"]

Say = Callable[[str], None]
Update = Callable[[int, int | None, str], None]
Bar = Callable[[str], AbstractContextManager[Update]]


@contextmanager
def no_bar(title: str) -> Iterator[Update]:
    """A bar that nobody sees."""
    yield lambda done, total, note: None


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Inputs of a run: the training batches and the pairs held out for validation."""

    batches: PairBatches
    held_a: TokenTable
    held_b: TokenTable
    pieces: npt.NDArray[np.float32] | None


def prepare(
    settings: TrainSettings, config: NexusConfig, tokenizer: Any, say: Say, bar: Bar
) -> Prepared:
    """Read, tokenise, and embed by the teachers.

    Raises:
        SourceError: the pairs cannot be read or are too few.
        ModelError: a teacher is missing.
    """
    pairs = _pairs(settings, say)
    a, b = [pair.a for pair in pairs], [pair.b for pair in pairs]
    split = len(a) - settings.holdout

    limit = min(settings.text.max_tokens, config.max_seq_len)

    def table(texts: list[str]) -> TokenTable:
        return TokenTable.build(texts, tokenizer, max_tokens=limit)

    teacher, pieces = None, None
    topics = _labels(pairs[:split], config.n_topics)
    if settings.teachers:
        vectors, piece_vectors = _teacher_vectors(settings, a + b, tokenizer, bar)
        space = initialize.TeacherSpace.fit(vectors, dim=config.semantic_dim)
        pieces = space.turn(piece_vectors)
        sides = vectors.reshape(2, len(a), -1)[:, :split]
        teacher = space.turn(sides).astype(np.float16)
        topics = _clusters(sides, config.n_topics) if topics is None else topics
    first, second, held_a, held_b = (table(x) for x in (a[:split], b[:split], a[split:], b[split:]))
    cut = sum(one.shortened for one in (first, second, held_a, held_b))
    if cut:
        say(f"{cut:,} of {2 * len(a):,} texts are longer than {limit} tokens, and cut there")
    batches = PairBatches(
        first,
        second,
        np.array([_keys(a[:split]), _keys(b[:split])], np.int64).T,
        Lexicon.build(second, term_of_piece(tokenizer, settings.stemmer)),
        teacher,
        topics,
        _negatives(pairs[:split], settings, table),
    )
    return Prepared(batches, held_a, held_b, pieces)


def _pairs(settings: TrainSettings, say: Say) -> list[Pair]:
    """Pairs, cut; side b at a random length, so that short and long are seen."""
    random = np.random.default_rng(settings.seed)
    low, high = np.log([settings.text.min_chars_b, settings.text.max_chars_b])
    refused: Counter[str] = Counter()
    pairs, cut = [], 0
    found = read_pairs(
        expand(settings.pairs),
        fields=settings.fields,
        weights=settings.source_weights,
        refuse=lambda reason: refused.update([reason]),
    )
    rows = islice(found, settings.skip_pairs, None)
    for pair in islice(rows, settings.max_pairs):
        a = cut_text(pair.a, limit=settings.text.max_chars_a)
        b = cut_text(pair.b, limit=int(np.exp(random.uniform(low, high))))
        cut += (a != pair.a) + (b != pair.b)
        pairs.append(replace(pair, a=a, b=b))
    said = "".join(f"; left out: {count:,} ({reason})" for reason, count in refused.items())
    say(f"{len(pairs):,} pairs read{unread(rows)}{said}")
    if cut:
        most = f"{settings.text.max_chars_a} and {settings.text.max_chars_b}"
        say(f"{cut:,} of {2 * len(pairs):,} texts are cut, to at most {most} characters")
    if len(pairs) <= settings.holdout:
        raise SourceError(
            f"{len(pairs)} pairs, of which holdout={settings.holdout} are for validation{said}",
            hint="give more pairs, skip fewer, or lower --holdout",
        )
    return pairs


def _keys(texts: Sequence[str]) -> list[int]:
    """A number for each text, equal for equal ones."""
    return [hash(text) for text in texts]


def _labels(pairs: Sequence[Pair], count: int) -> npt.NDArray[np.int64] | None:
    """Topic labels `[2, n]` that the pairs bring along; None if they bring none.

    Raises:
        ConfigError: there are more topics than the network has.
    """
    labels = np.array([pair.topic for pair in pairs], dtype=np.int64)
    if labels.max(initial=-1) >= count:
        raise ConfigError(
            f"a pair has topic {labels.max()}, the network has n_topics={count}",
            hint="raise n_topics in the network's JSON",
        )
    return np.stack([labels, labels]) if (labels >= 0).any() else None


def _negatives(
    pairs: Sequence[Pair], settings: TrainSettings, table: Callable[[list[str]], TokenTable]
) -> Negatives | None:
    limit = settings.text.max_chars_b
    texts = [cut_text(text, limit=limit) for pair in pairs for text in pair.negatives]
    if not texts:
        return None
    starts = np.cumsum([0, *(len(pair.negatives) for pair in pairs)], dtype=np.int64)
    return Negatives(table(texts), starts, np.array(_keys(texts), dtype=np.int64))


def _teacher_vectors(
    settings: TrainSettings, texts: list[str], tokenizer: Any, bar: Bar
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """The teachers' vectors of the texts and of each piece, side by side."""
    columns, pieces = [], []
    for name in settings.teachers:
        teacher = Teacher(find_teacher(name), device=settings.device, int8=settings.teacher_int8)
        cache = settings.teacher_cache or settings.out / "teacher"
        with bar(f"teacher {teacher.name}") as update:

            def report(done: int, total: int, update: Update = update) -> None:
                update(done, total, "")

            columns.append(teacher.encode_cached(texts, cache, progress=report))
            pieces.append(teacher.encode_cached(piece_texts(tokenizer), cache))
    return np.concatenate(columns, axis=1), np.concatenate(pieces, axis=1)


def _clusters(sides: npt.NDArray[np.float16], count: int) -> npt.NDArray[np.int64]:
    """Topic labels `[2, n]`: spherical k-means clusters of the teacher's vectors."""
    flat = np.ascontiguousarray(sides.reshape(-1, sides.shape[-1]), dtype=np.float32)
    clusters = faiss.Kmeans(flat.shape[1], count, niter=10, seed=0, spherical=True)
    clusters.train(flat[:: max(1, len(flat) // 20_000)])
    return np.asarray(clusters.index.search(flat, 1)[1].reshape(2, -1), dtype=np.int64)
