"""The same gradients whichever way a batch goes through the network; negatives; processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nexus_vdb.errors import ModelError
from nexus_vdb.model.batches import Negatives, PairBatches
from nexus_vdb.model.config import load_config
from nexus_vdb.model.data import TokenTable, read_pairs
from nexus_vdb.model.gradients import backward
from nexus_vdb.model.lexicon import Lexicon
from nexus_vdb.model.network import NexusModel
from nexus_vdb.model.objective import Objective
from nexus_vdb.model.schedule import LossWeights, Schedule
from nexus_vdb.model.tokenizer import load_tokenizer
from nexus_vdb.model.trainer import train


@pytest.fixture(scope="module")
def batches(pairs_file: Path, tokenizer_file: Path) -> PairBatches:
    pairs = list(read_pairs([pairs_file]))
    tokenizer = load_tokenizer(tokenizer_file)

    def table(texts: list[str]) -> TokenTable:
        return TokenTable.build(texts, tokenizer, max_tokens=48)

    a, b = [pair.a for pair in pairs], [pair.b for pair in pairs]
    keys = np.array([[hash(text) for text in a], [hash(text) for text in b]], np.int64).T
    # Of every pair the two after it; every third pair has one only, every fourth none.
    rows = [
        [(i + 1) % 600, (i + 2) % 600][: 0 if i % 4 == 0 else 1 + (i % 3 > 0)] for i in range(600)
    ]
    flat = [row for some in rows for row in some]
    negatives = Negatives(
        table([b[row] for row in flat]),
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        keys[flat, 1],
    )
    second = table(b)
    topics = np.array([[pair.topic for pair in pairs]] * 2)
    return PairBatches(
        table(a), second, keys, Lexicon.build(second, np.arange(600)), None, topics, negatives
    )


def gradients(
    network_file: Path, batches: PairBatches, schedule: Schedule
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = load_config(network_file).model_copy(update={"dropout": 0.0})
    model = NexusModel(config)
    torch.nn.init.normal_(model.tokens.weight)
    objective = Objective(LossWeights(), schedule, config.matryoshka_dims)
    backward(model, objective, batches.at(0, schedule), chunk=schedule.chunk)
    named = [*model.named_parameters(), *objective.named_parameters()]
    return {name: value.grad for name, value in named if value.grad is not None}


def test_chunks_give_the_gradients_of_the_whole_batch(
    network_file: Path, batches: PairBatches
) -> None:
    whole = gradients(network_file, batches, Schedule(batch=32))
    chunked = gradients(network_file, batches, Schedule(batch=32, chunk=8))
    assert whole.keys() == chunked.keys()
    for name, value in whole.items():
        # bf16 sums in another order
        assert (
            torch.nn.functional.cosine_similarity(value.ravel(), chunked[name].ravel(), dim=0)
            > 0.99
            or value.norm() < 1e-4
        ), name


def test_a_batch_draws_the_negatives_of_its_pairs(batches: PairBatches) -> None:
    schedule = Schedule(batch=32, hard_negatives=2)
    batch, rows = batches.at(3, schedule), batches.rows(3, schedule)
    assert len(batch.sides) == 3
    assert batch.sides[2][0].shape[0] == 64
    assert batch.duplicates.shape == (32, 96)
    assert batches.negatives is not None
    for place, row in enumerate(rows.tolist()):
        count = 0 if row % 4 == 0 else 1 + (row % 3 > 0)
        ids, mask = (one[2 * place : 2 * place + 2] for one in batch.sides[2])
        wanted = {tuple(batches.b[(row + step) % 600].tolist()) for step in (1, 2)[:count]}
        missing = batch.duplicates[place, 32 + 2 * place : 34 + 2 * place].tolist()
        found = [tuple(one[: int(n)].tolist()) for one, n in zip(ids, mask.sum(1), strict=True)]
        assert missing == [step >= count for step in range(2)]
        assert set(found[:count]) == wanted
    again = batches.at(3, schedule)
    assert torch.equal(batch.sides[2][0], again.sides[2][0])


def test_negatives_make_the_contrast_harder(network_file: Path, batches: PairBatches) -> None:
    losses = []
    for hard in (0, 2):
        torch.manual_seed(0)
        model = NexusModel(load_config(network_file))
        schedule = Schedule(batch=32, hard_negatives=hard)
        objective = Objective(LossWeights(), schedule, (768, 512, 256))
        losses.append(backward(model, objective, batches.at(0, schedule))["contrastive"])
    assert losses[1] > losses[0] + 0.1


def test_a_gradient_that_is_not_finite_stops_before_it_does_harm(
    network_file: Path, batches: PairBatches, tmp_path: Path
) -> None:
    model = NexusModel(load_config(network_file))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model.fuse.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match="the gradient is (nan|inf) at step 0") as caught:
        schedule = Schedule(steps=3, batch=32)
        train(model, batches, schedule, weights=LossWeights(), folder=tmp_path)
    assert caught.value.hint == "there is no checkpoint yet; lower the learning rate"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


TRAIN = """
import sys
from nexus_vdb.cli import run
from nexus_vdb.model import precision
from nexus_vdb.pipelines import train
train.FIT_FROM = 256
precision.has_fast_bf16 = lambda device: False  # bf16 rounds by how a batch is parted
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_two_processes_train_as_one_does(
    pairs_file: Path, tokenizer_file: Path, network_file: Path, tmp_path: Path, ema: float
) -> None:
    network = tmp_path / "network.json"
    network.write_text(json.dumps(json.loads(network_file.read_text()) | {"dropout": 0.0}))
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    toml = tmp_path / "train.toml"
    toml.write_text(f"holdout = 100\n[schedule]\nwarmup = 2\nema = {ema}\ncheckpoint_every = 3\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    losses, weights = [], []
    for processes in (1, 2):
        out = tmp_path / f"run-{processes}"
        words = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={processes}", str(script), "train"),
            *("--config", str(toml), "--network", str(network)),
            *("--tokenizer", str(tokenizer_file), "--pairs", str(pairs_file)),
            *("--out", str(out), "--steps", "6", "--batch", "32"),
        ]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
        rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 9
        losses.append([row["loss"] for row in rows if "loss" in row])
        weights.append(load_file(out / "step-0000006.safetensors"))
    rounding = 1e-4 if ema else 1e-3  # more once a step goes on from fitted axes
    np.testing.assert_allclose(losses[0], losses[1], rtol=rounding)
    for name, value in weights[0].items():
        if "fuse" in name or "hash_residual" in name:
            continue  # axes of like length: as they fall
        if name.startswith(("weights.", "ema.")) and value.float().norm() > 0.1:
            one, two = value.float().ravel(), weights[1][name].float().ravel()
            assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.999, name


def test_the_running_mean_is_what_is_exported(tmp_path: Path) -> None:
    from nexus_vdb.model.bundle import load_checkpoint
    from nexus_vdb.model.checkpoints import save
    from nexus_vdb.model.config import NexusConfig
    from nexus_vdb.model.optimizer import Optimizer

    config = NexusConfig(vocab_size=300, d_model=8, n_layers=0, n_heads=1, d_ff=8, max_seq_len=8)
    model = NexusModel(config)
    trained = torch.nn.ModuleDict({"model": model})
    mean = {"fuse.weight": model.fuse.weight.detach() + 1}
    optimizer = Optimizer(torch.optim.AdamW(trained.parameters()))
    path = save(tmp_path, 3, trained, optimizer, ema=mean, config=config.model_dump_json())
    loaded, step = load_checkpoint(path)
    assert step == 3
    assert torch.equal(loaded.fuse.weight, mean["fuse.weight"])
    assert torch.equal(loaded.tokens.weight, model.tokens.weight)
