"""The training job: pairs → tokens (→ teacher vectors) → a trained network in a run folder.

What is slow is kept in the run folder and found again: teacher vectors shard by shard, checkpoints
every few hundred steps. The same command after a kill goes on where it stopped.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from nexus_vdb.encoder import find_bundle
from nexus_vdb.errors import ConfigError
from nexus_vdb.model import initialize
from nexus_vdb.model.batches import PairBatches, TextBatch, text_batches
from nexus_vdb.model.checkpoints import latest_checkpoint
from nexus_vdb.model.config import load_config
from nexus_vdb.model.fusion_fit import fit_fusion
from nexus_vdb.model.gradients import Ranks
from nexus_vdb.model.hash_fit import FIT_FROM
from nexus_vdb.model.losses import cut
from nexus_vdb.model.network import NexusModel, NexusOutput, count_parameters
from nexus_vdb.model.precision import autocast
from nexus_vdb.model.tokenizer import load_tokenizer
from nexus_vdb.model.trainer import train
from nexus_vdb.pipelines._train_inputs import Bar, Prepared, Say, Update, no_bar, prepare
from nexus_vdb.pipelines._train_settings import TrainSettings

__all__ = ["Bar", "Say", "TrainSettings", "no_bar", "run_training"]


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
    with _together(settings.device) as device:
        if Ranks().number:  # the first process speaks for all
            say, bar = _silent, no_bar
        return _run(settings, device, say, bar)


def _run(settings: TrainSettings, device: str, say: Say, bar: Bar) -> Path:
    config = load_config(settings.network)
    tokenizer = load_tokenizer(settings.tokenizer)
    config = config.model_copy(update={"vocab_size": tokenizer.get_piece_size()})
    with _first_alone():
        prepared = prepare(settings, config, tokenizer, say, bar)
    torch.manual_seed(settings.seed)
    model = NexusModel(config)
    say(f"{count_parameters(model):,} parameters, {len(prepared.batches.a):,} pairs")
    if settings.start:
        _load_start(model, settings)
        if prepared.batches.teacher is not None:
            turned = initialize.turned_to(model, prepared.batches)
            prepared = replace(prepared, batches=replace(prepared.batches, teacher=turned))
    if latest_checkpoint(settings.out) is None:
        _start(model, prepared, settings)
    _freeze(model, settings.freeze)

    def validate(model: NexusModel) -> dict[str, float]:
        with bar("held out") as update, initialize.without_idle_blocks(model):
            found = _held_out_mrr(model, prepared, device=device, update=update)
        say("held out: " + "  ".join(f"{name} {value:.3f}" for name, value in found.items()))
        return found

    def fit(model: NexusModel) -> None:
        brought = settings.start and not settings.refit
        if brought or not settings.fit_fusion or 2 * len(prepared.batches.a) < FIT_FROM:
            return
        sample = _sample(prepared.batches, FIT_FROM // 2)
        with bar("fitting fusion and hash") as update:
            fit_fusion(model, _watched(sample, update))

    with bar("training") as update:
        smooth = _Smooth()
        train(
            model,
            prepared.batches,
            settings.schedule,
            weights=settings.losses,
            folder=settings.out,
            device=device,
            report=lambda step, parts: update(step, settings.schedule.steps, smooth(parts["loss"])),
            validate=validate,
            fit=fit,
            until=time.time() + 60 * settings.minutes,
        )
    checkpoint = latest_checkpoint(settings.out)
    assert checkpoint is not None
    return checkpoint


def _watched(batches: list[TextBatch], update: Update) -> Iterator[TextBatch]:
    for done, batch in enumerate(batches, 1):
        yield batch
        update(done, len(batches), "")


@contextmanager
def _together(device: str) -> Iterator[str]:
    """Join the processes that `torchrun` started, if it did; gives this one's device."""
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        yield device
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def _first_alone() -> Iterator[None]:
    """The first process goes ahead, so that the others find what it has kept on disk."""
    ranks = Ranks()
    if ranks.number:
        ranks.wait()
    yield
    if not ranks.number:
        ranks.wait()


def _silent(line: str) -> None:
    """Say nothing."""


class _Smooth:
    """The mean loss, for people to read: of all steps, after fifty a running mean."""

    def __init__(self) -> None:
        self._mean, self._seen = 0.0, 0

    def __call__(self, loss: float) -> str:
        self._seen = min(self._seen + 1, 50)
        self._mean += (loss - self._mean) / self._seen
        return f"loss {self._mean:.3f}"


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: handed back at each step, it has to be faulted in anew."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block by mmap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


_KEYS = {"bigrams.keys": "pairs of pieces with vectors", "bag.terms": "terms of pieces"}


def _start(model: NexusModel, prepared: Prepared, settings: TrainSettings) -> None:
    """Set what need not be learned: see `nexus_vdb.model.initialize`."""
    batches = prepared.batches
    if model.bigrams is not None and not model.bigrams.started:
        model.bigrams.start([batches.a, batches.b])
    if settings.start and not settings.refit:
        return
    if not settings.start:
        if prepared.pieces is not None:
            initialize.start_from_pieces(model, prepared.pieces)
        initialize.start_from_counts(model, batches.b)
    if model.bag is not None:
        initialize.start_bag(model.bag, batches.lexicon, seed=settings.seed)
    initialize.start_gates(model, entity_weight=settings.entity_weight)
    sample = _sample(batches, 4096)
    with initialize.without_idle_blocks(model.eval()):
        if model.config.nsa:
            initialize.fit_anchors(model, sample)
        fit_fusion(model, sample)


def _sample(batches: PairBatches, count: int) -> list[TextBatch]:
    """Ids and masks of both sides of the first pairs, at most so many."""
    rows = np.arange(min(count, len(batches.a)))
    return [
        batch
        for table in (batches.a, batches.b)
        # Like lengths together: less padding, and the order changes nothing here.
        for batch in text_batches(table, rows[np.argsort(table.lengths[rows], kind="stable")])
    ]


def _load_start(model: NexusModel, settings: TrainSettings) -> None:
    """Copy the weights of the bundle that the run begins with, or the mean of several.

    The mean of runs that went apart from one start keeps most of what each has learned (model
    soups, Wortsman et al. 2022, arXiv:2203.05482).
    """
    weights = model.state_dict()
    others = [_fitting(name, model, settings).state_dict() for name in settings.start]
    for name in ("bigrams.keys",) if settings.refit else ("bigrams.keys", "bag.terms"):
        kept = [other.get(name, torch.empty(0)) for other in others]
        if not all(torch.equal(kept[0], own) for own in kept):
            raise ConfigError(
                f"the bundles of start have other {_KEYS[name]}, and no mean",
                hint="average what came of one start",
            )
    mean = {
        name: torch.stack([other[name] for other in others]).double().mean(0).to(value.dtype)
        for name, value in weights.items()
        if all(name in other and other[name].shape == value.shape for other in others)
    }
    model.load_state_dict(weights | mean)


def _fitting(name: str, model: NexusModel, settings: TrainSettings) -> NexusModel:
    """The network of a bundle, if it is like the one that is to be trained."""
    from nexus_vdb.model.unpack import load_bundle  # needs onnx, which training alone does not

    folder = find_bundle(name)
    other = load_bundle(folder)
    free = {"dropout", "bag_dim"} if settings.refit else {"dropout"}
    if not other.config.bigrams:
        free.add("bigrams")  # a network may grow by them: they start at zero
    if other.config.model_dump(exclude=free) != model.config.model_dump(exclude=free):
        raise ConfigError(
            f"{settings.network} is another network than that of {folder}",
            hint="take the settings of its config.json; with refit = true, bag_dim may differ",
        )
    if (folder / "tokenizer.model").read_bytes() != settings.tokenizer.read_bytes():
        raise ConfigError(
            f"{settings.tokenizer} is another tokenizer than that of {folder}",
            hint=f"--tokenizer {folder / 'tokenizer.model'}",
        )
    return other


def _freeze(model: NexusModel, names: Sequence[str]) -> None:
    """Leave parts of the network as they are.

    Raises:
        ConfigError: the network has no such part.
    """
    parts = dict(model.named_modules())
    for name in names:
        if not name or name not in parts:
            valid = ", ".join(name for name, _ in model.named_children())
            raise ConfigError(f"Invalid freeze={name!r}; valid: {valid}, or a part of one")
        parts[name].requires_grad_(False)


@torch.no_grad()
def _held_out_mrr(
    model: NexusModel, prepared: Prepared, *, device: str, update: Update
) -> dict[str, float]:
    """MRR of each held-out text's partner among all held-out partners: fused, by head, by hash."""
    model.eval()
    outputs: list[list[NexusOutput]] = [[], []]
    for parts, table in zip(outputs, (prepared.held_a, prepared.held_b), strict=True):
        for rows in np.array_split(np.arange(len(table)), max(1, len(table) // 100)):
            ids, mask = (torch.from_numpy(x).to(device) for x in table.padded(rows))
            with autocast(device):
                parts.append(model(ids, mask))
            update(sum(map(len, outputs)) * 100, 2 * len(table), "")

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
