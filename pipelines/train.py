"""The training job: pairs → tokens (→ teacher vectors) → a trained network in a run folder.

What is slow is kept in the run folder and found again: teacher vectors shard by shard, checkpoints
every few hundred steps. The same command after a kill goes on where it stopped.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from nexus_vdb.errors import SourceError
from nexus_vdb.model import initialize
from nexus_vdb.model.config import NexusConfig, load_config
from nexus_vdb.model.data import TokenTable, cut_text, expand, read_pairs
from nexus_vdb.model.losses import cut
from nexus_vdb.model.network import NexusModel, count_parameters
from nexus_vdb.model.teachers import Teacher, find_teacher
from nexus_vdb.model.tokenizer import load_tokenizer, piece_texts
from nexus_vdb.model.trainer import LossWeights, PairBatches, Schedule, latest_checkpoint, train
from nexus_vdb.settings import Settings

__all__ = ["Bar", "Say", "TrainSettings", "no_bar", "run_training"]


Say = Callable[[str], None]
Update = Callable[[int, int | None, str], None]
Bar = Callable[[str], AbstractContextManager[Update]]


@contextmanager
def no_bar(title: str) -> Iterator[Update]:
    """A bar that nobody sees."""
    yield lambda done, total, note: None


class TextSettings(Settings):
    """How texts are cut before they are tokenised: long ones cost more than they teach."""

    max_tokens: int = Field(192, ge=8)
    max_chars_a: int = 300
    min_chars_b: int = 60
    max_chars_b: int = 600


class TrainSettings(Settings):
    """Everything a training run depends on."""

    network: Path
    tokenizer: Path
    pairs: list[str]
    out: Path = Path("runs/train")
    fields: list[str] = []
    source_weights: dict[str, float] = {}
    max_pairs: int = 200_000
    holdout: int = 2000
    teachers: list[str] = []
    device: str = "cpu"
    minutes: float = math.inf
    seed: int = 0
    text: TextSettings = TextSettings()
    schedule: Schedule = Schedule()
    losses: LossWeights = LossWeights()


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Inputs of a run: the training batches and the pairs held out for validation."""

    batches: PairBatches
    held_a: TokenTable
    held_b: TokenTable
    pieces: npt.NDArray[np.float32] | None


def run_training(
    settings: TrainSettings, *, say: Say = lambda line: None, bar: Bar = no_bar
) -> Path:
    """Train as the settings say; returns the last checkpoint.

    Args:
        settings: Data, network, schedule, and the run folder.
        say: Told what happens, line by line.
        bar: Opens a progress bar; it is moved by `update(done, total, note)`.

    Raises:
        SourceError: the pairs cannot be read or are too few.
        ModelError: teacher or tokenizer is missing, or the loss is not finite.
    """
    _keep_freed_memory()
    config = load_config(settings.network)
    tokenizer = load_tokenizer(settings.tokenizer)
    config = config.model_copy(update={"vocab_size": tokenizer.get_piece_size()})
    prepared = _prepare(settings, config, tokenizer, say, bar)
    torch.manual_seed(settings.seed)
    model = NexusModel(config)
    say(f"{count_parameters(model):,} parameters, {len(prepared.batches.a):,} pairs")
    if latest_checkpoint(settings.out) is None:
        _start(model, prepared)

    def validate(model: NexusModel) -> dict[str, float]:
        found = _held_out_mrr(model, prepared, device=settings.device)
        say("held out: " + "  ".join(f"{name} {value:.3f}" for name, value in found.items()))
        return found

    with bar("training") as update:
        smooth = _Smooth()
        train(
            model,
            prepared.batches,
            settings.schedule,
            weights=settings.losses,
            folder=settings.out,
            device=settings.device,
            report=lambda step, parts: update(step, settings.schedule.steps, smooth(parts["loss"])),
            validate=validate,
            until=time.time() + 60 * settings.minutes,
        )
    checkpoint = latest_checkpoint(settings.out)
    assert checkpoint is not None
    return checkpoint


class _Smooth:
    """The running mean of the loss, for people to read."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def __call__(self, loss: float) -> str:
        self._mean = loss if self._mean is None else 0.98 * self._mean + 0.02 * loss
        return f"loss {self._mean:.3f}"


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: handed back at each step, it has to be faulted in anew."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block by mmap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _prepare(
    settings: TrainSettings, config: NexusConfig, tokenizer: Any, say: Say, bar: Bar
) -> Prepared:
    a, b = _texts(settings)
    split = len(a) - settings.holdout
    say(f"{len(a):,} pairs read")

    def table(texts: list[str]) -> TokenTable:
        limit = min(settings.text.max_tokens, config.max_seq_len)
        return TokenTable.build(texts, tokenizer, max_tokens=limit)

    keys = np.array([[hash(x) for x in a[:split]], [hash(x) for x in b[:split]]], np.int64).T
    teacher, topics, pieces = None, None, None
    if settings.teachers:
        vectors, piece_vectors = _teacher_vectors(settings, a + b, tokenizer, bar)
        space = initialize.TeacherSpace.fit(vectors, dim=config.semantic_dim)
        pieces = space.turn(piece_vectors)
        sides = vectors.reshape(2, len(a), -1)[:, :split]
        teacher = space.turn(sides).astype(np.float16)
        topics = _topics(sides, config.n_topics)
    first, second = table(a[:split]), table(b[:split])
    idf = second.idf(config.vocab_size)
    batches = PairBatches(first, second, keys, idf, teacher, topics)
    return Prepared(batches, table(a[split:]), table(b[split:]), pieces)


def _texts(settings: TrainSettings) -> tuple[list[str], list[str]]:
    """Both sides of the pairs, cut; side b at a random length, so that short and long are seen."""
    paths = expand(settings.pairs)
    random = np.random.default_rng(settings.seed)
    low, high = np.log([settings.text.min_chars_b, settings.text.max_chars_b])
    a, b = [], []
    for pair in read_pairs(paths, fields=settings.fields, weights=settings.source_weights):
        a.append(cut_text(pair.a, limit=settings.text.max_chars_a))
        b.append(cut_text(pair.b, limit=int(np.exp(random.uniform(low, high)))))
        if len(a) == settings.max_pairs:
            break
    if len(a) <= settings.holdout:
        raise SourceError(
            f"{len(a)} pairs, of which holdout={settings.holdout} are for validation",
            hint="give more pairs, or lower holdout",
        )
    return a, b


def _teacher_vectors(
    settings: TrainSettings, texts: list[str], tokenizer: Any, bar: Bar
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """The teachers' vectors of the texts and of each piece, side by side."""
    columns, pieces = [], []
    for name in settings.teachers:
        teacher = Teacher(find_teacher(name), device=settings.device)
        cache = settings.out / "teacher"
        with bar(f"teacher {teacher.name}") as update:

            def report(done: int, total: int, update: Update = update) -> None:
                update(done, total, "")

            columns.append(teacher.encode_cached(texts, cache, progress=report))
            pieces.append(teacher.encode_cached(piece_texts(tokenizer), cache))
    return np.concatenate(columns, axis=1), np.concatenate(pieces, axis=1)


def _topics(sides: npt.NDArray[np.float16], count: int) -> npt.NDArray[np.int64]:
    """Topic labels `[2, n]`: spherical k-means clusters of the teacher's vectors."""
    flat = np.ascontiguousarray(sides.reshape(-1, sides.shape[-1]), dtype=np.float32)
    clusters = faiss.Kmeans(flat.shape[1], count, niter=10, seed=0, spherical=True)
    clusters.train(flat[:: max(1, len(flat) // 20_000)])
    return np.asarray(clusters.index.search(flat, 1)[1].reshape(2, -1), dtype=np.int64)


def _start(model: NexusModel, prepared: Prepared) -> None:
    """Set what need not be learned: see `nexus_vdb.model.initialize`."""
    if prepared.pieces is not None:
        initialize.start_from_pieces(model, prepared.pieces)
    initialize.start_from_counts(model, prepared.batches.b)
    sample = np.arange(min(4096, len(prepared.batches.a)))
    ids = [
        tuple(map(torch.from_numpy, table.padded(rows)))
        for table in (prepared.batches.a, prepared.batches.b)
        for rows in np.array_split(sample, max(1, len(sample) // 128))
    ]
    initialize.fit_fusion(model, ids)  # type: ignore[arg-type]


@torch.no_grad()
def _held_out_mrr(model: NexusModel, prepared: Prepared, *, device: str) -> dict[str, float]:
    """MRR of each held-out text's partner among all held-out partners: fused, by head, by hash."""
    model.eval()
    outputs = []
    for table in (prepared.held_a, prepared.held_b):
        parts = []
        for rows in np.array_split(np.arange(len(table)), max(1, len(table) // 100)):
            ids, mask = (torch.from_numpy(x).to(device) for x in table.padded(rows))
            with torch.autocast(device, dtype=torch.bfloat16):
                parts.append(model(ids, mask))
        outputs.append(parts)

    def stack(side: int, name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in outputs[side]]).float()

    def mrr(scores: torch.Tensor) -> float:
        rank = (scores > scores.diagonal()[:, None]).sum(1) + 1
        return float((1 / rank).mean())

    a, b = stack(0, "embedding"), stack(1, "embedding")
    found = {f"mrr_{dim}": mrr(cut(a, dim) @ cut(b, dim).T) for dim in model.config.matryoshka_dims}
    for head in ("semantic", "entity"):
        found[f"mrr_{head}"] = mrr(stack(0, head) @ stack(1, head).T)
    logits = stack(0, "hash_logits")
    found["mrr_hash"] = mrr(logits @ stack(1, "hash_logits").sign().T)
    top = (a @ b.T).topk(10).indices
    shortlist = (logits @ stack(1, "hash_logits").sign().T).topk(len(b) // 20).indices
    found["hash_recall_5pct"] = float(
        (top[:, :, None] == shortlist[:, None, :]).any(-1).float().mean()
    )
    model.train()
    return found
