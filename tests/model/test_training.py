"""The training job learns, resumes bit for bit, stops on nonsense; then teachers and export."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nexus_vdb.encoder import load_encoder
from nexus_vdb.errors import ConfigError, ModelError, SourceError
from nexus_vdb.model import optimizer
from nexus_vdb.model.bundle import load_checkpoint
from nexus_vdb.model.schedule import Schedule
from nexus_vdb.pipelines.distill import run_distillation
from nexus_vdb.pipelines.export import ExportSettings, run_export
from nexus_vdb.pipelines.train import TrainSettings, run_training
from nexus_vdb.settings import make_settings


@pytest.fixture
def values(pairs_file: Path, tokenizer_file: Path, network_file: Path, tmp_path: Path) -> Any:
    return {
        "network": network_file,
        "tokenizer": tokenizer_file,
        "pairs": [str(pairs_file)],
        "out": tmp_path / "run",
        "holdout": 100,
        "schedule": {"steps": 40, "batch": 32, "warmup": 5, "checkpoint_every": 10},
    }


def settings(values: dict[str, Any], **schedule: Any) -> TrainSettings:
    return make_settings(TrainSettings, values | {"schedule": values["schedule"] | schedule})


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_what_partners_share(values: Any) -> None:
    run_training(settings(values, steps=60))
    rows = metrics(values["out"])
    held_out = [row["mrr_768"] for row in rows if "mrr_768" in row]
    losses = [row["contrastive"] for row in rows if "contrastive" in row]
    assert held_out[-1] > held_out[0]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_the_loss_that_is_shown_is_the_mean_of_the_steps(values: Any) -> None:
    shown = []

    @contextmanager
    def bar(title: str) -> Iterator[Callable[[int, int | None, str], None]]:
        yield lambda done, total, text: shown.append(text) if title == "training" else None

    run_training(settings(values, steps=3), bar=bar)
    losses = [row["loss"] for row in metrics(values["out"]) if "loss" in row]
    means = [np.mean(losses[:many]) for many in (1, 2, 3)]
    assert shown == [f"loss {mean:.3f}" for mean in means]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_resumes_bit_for_bit(values: Any, optimizer: str) -> None:
    values["schedule"] |= {"optimizer": optimizer}
    whole = load_file(run_training(settings(values)))
    checkpoints = sorted(values["out"].glob("step-*"))
    assert [path.stem for path in checkpoints] == ["step-0000030", "step-0000040"]
    checkpoints[-1].unlink()
    resumed = load_file(run_training(settings(values)))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_each_checkpoint_of_the_schedule_has_a_fitted_fusion(
    values: Any, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    """A run that was stopped between two of them ends as one in one piece."""
    monkeypatch.setattr("nexus_vdb.pipelines.train.FIT_FROM", 256)

    def skew(run: Path) -> float:
        axes = load_checkpoint(run)[0].fuse.weight.detach()
        return float((axes @ axes.T - torch.eye(len(axes))).abs().max())

    run = settings(values, ema=ema)
    whole = load_file(run_training(run))
    kept = sorted(values["out"].glob("step-*"))
    assert max(map(skew, kept)) < 1e-4
    for path in kept:
        path.unlink()
    stopped = run_training(run.model_copy(update={"minutes": 0.0}))
    assert (stopped.stem, skew(stopped) > 1e-5) == ("step-0000001", True)
    for name, tensor in load_file(run_training(run)).items():
        assert torch.equal(tensor, whole[name]), name


def test_a_bundle_keeps_its_fusion(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexus_vdb.pipelines.train.FIT_FROM", 256)
    fitted: list[int] = []
    monkeypatch.setattr("nexus_vdb.pipelines.train.fit_fusion", lambda *_: fitted.append(1))
    first = run_training(settings(values, steps=2))
    assert len(fitted) == 2
    bundle = first.parent / "bundle"
    export = {"checkpoint": first, "tokenizer": values["tokenizer"], "sample": values["pairs"]}
    run_export(make_settings(ExportSettings, export | {"precision": "float32", "out": bundle}))
    values |= {"start": str(bundle), "out": first.parent / "further"}
    run_training(settings(values, steps=2))
    assert len(fitted) == 2


def test_a_finished_run_is_not_trained_again(values: Any) -> None:
    first = run_training(settings(values, steps=10))
    before = first.read_bytes()
    assert run_training(settings(values, steps=10)).read_bytes() == before


def test_pairs_that_are_skipped_might_as_well_not_be_there(values: Any, tmp_path: Path) -> None:
    rest = tmp_path / "rest.jsonl"
    lines = Path(values["pairs"][0]).read_text().splitlines(keepends=True)
    rest.write_text("".join(lines[150:]))
    skipping = values | {"skip_pairs": 150, "out": tmp_path / "one"}
    found = load_file(run_training(settings(skipping, steps=2)))
    values |= {"pairs": [str(rest)]}
    for name, tensor in load_file(run_training(settings(values, steps=2))).items():
        assert torch.equal(tensor, found[name]), name


def test_a_checkpoint_of_another_network_is_refused(values: Any, network_file: Path) -> None:
    run_training(settings(values, steps=10))
    other = network_file.with_name("other.json")
    other.write_text(network_file.read_text().replace('"d_ff": 64', '"d_ff": 32'))
    with pytest.raises(ConfigError, match="another network"):
        run_training(settings(values | {"network": other}))


def test_a_loss_that_is_no_number_stops_with_the_checkpoint_kept(values: Any) -> None:
    path = run_training(settings(values, steps=10))
    tensors = load_file(path)
    tensors["weights.model.fuse.weight"][0, 0] = torch.nan
    config = load_checkpoint(path)[0].config
    save_file(tensors, path, metadata={"step": "10", "config": config.model_dump_json()})
    with pytest.raises(ModelError, match="nan at step 10"):
        run_training(settings(values, steps=20))
    assert path.exists()


def test_too_few_pairs_are_an_error(values: Any) -> None:
    with pytest.raises(SourceError, match="holdout"):
        run_training(settings(values | {"holdout": 600}))
    with pytest.raises(ConfigError, match="batch=5000"):
        run_training(settings(values, batch=5000))


def test_a_misspelt_setting_names_the_key(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.learning_rat"):
        settings(values, learning_rat=1)


def test_muon_changes_matrices_of_the_blocks_in_all_directions_alike(values: Any) -> None:
    """The others as AdamW does; where a torch has none, the error says what to do."""
    found = {}
    for name in ("adamw", "muon"):
        values["out"] = values["out"].with_name(name)
        before = load_file(run_training(settings(values | {"out": values["out"] / "0"}, steps=0)))
        run = settings(values | {"out": values["out"] / "1"}, steps=1, optimizer=name)
        after = load_file(run_training(run))
        found[name] = {key: after[key] - before[key] for key in before if key.startswith("weights")}
    down = {name: moved["weights.model.blocks.0.down.weight"] for name, moved in found.items()}
    spread = {name: torch.linalg.svdvals(moved) for name, moved in down.items()}
    assert spread["adamw"][0] > 5 * spread["adamw"].median()
    assert spread["muon"][0] < 2 * spread["muon"].median()
    for name in ("semantic", "tokens"):
        first, second = (moved[f"weights.model.{name}.weight"] for moved in found.values())
        torch.testing.assert_close(first, second)


def test_a_torch_without_muon_is_told(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match="has no Muon") as caught:
        run_training(settings(values, optimizer="muon"))
    assert "adamw" in str(caught.value.hint)


def test_a_network_without_blocks_can_be_trained(values: Any, network_file: Path) -> None:
    flat = network_file.with_name("flat.json")
    flat.write_text(network_file.read_text().replace('"n_layers": 1', '"n_layers": 0'))
    values["network"] = flat
    run_training(settings(values, steps=10, optimizer="muon"))
    assert np.isfinite(metrics(values["out"])[-1]["mrr_768"])


def test_learning_rates() -> None:
    linear = Schedule(steps=110, warmup=10, learning_rate=1.0)
    assert [linear.rate(step) for step in (0, 9, 10, 60)] == pytest.approx([0.1, 1.0, 1.0, 0.5])
    wsd = linear.model_copy(update={"decay": "wsd"})
    assert [wsd.rate(step) for step in (50, 89, 100)] == pytest.approx([1.0, 1.0, 0.5])
    cosine = linear.model_copy(update={"decay": "cosine"})
    assert cosine.rate(60) == pytest.approx(0.5)


def test_matrices_of_a_larger_network_change_less(
    values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "_BLOCKS", 1)

    def moved(width: int) -> dict[str, float]:
        """The mean change of some weights of the network, 64 wide, in its first step."""
        monkeypatch.setattr(optimizer, "_WIDTH", width)
        out = tmp_path / str(width)
        before = load_file(run_training(settings(values | {"out": out / "before"}, steps=0)))
        after = load_file(run_training(settings(values | {"out": out / "after"}, steps=1)))
        names = ("model.semantic", "model.blocks.0.down", "model.tokens")
        weights = (f"weights.{name}.weight" for name in names)
        return {name: (after[name] - before[name]).abs().mean().item() for name in weights}

    equal, larger = moved(64), moved(32)
    ratios = [larger[name] / equal[name] for name in equal]
    assert ratios == pytest.approx([0.5, 0.5, 1.0], rel=1e-3)


def test_distillation_brings_the_semantic_head_to_the_teacher(
    values: Any, teacher_folder: Path
) -> None:
    run_distillation(settings(values | {"teachers": [str(teacher_folder)]}, steps=60))
    losses = [row["vector"] for row in metrics(values["out"]) if "vector" in row]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    assert list((values["out"] / "teacher").glob("words-*/*.npy"))


def test_distillation_without_a_teacher_is_an_error(values: Any) -> None:
    with pytest.raises(ConfigError, match="teachers"):
        run_distillation(settings(values))
    with pytest.raises(ModelError, match="no teacher 'nowhere'"):
        run_distillation(settings(values | {"teachers": ["nowhere"]}))


@pytest.mark.parametrize(
    ("precision", "least"), [("float32", 0.99999), ("float16", 0.99999), ("int8", 0.98)]
)
def test_export_gives_a_bundle_that_encodes_as_torch_does(
    values: Any, tmp_path: Path, precision: str, least: float
) -> None:
    checkpoint = run_training(settings(values, steps=20))
    export = {
        "checkpoint": values["out"],
        "tokenizer": values["tokenizer"],
        "out": tmp_path / "bundle",
        "sample": values["pairs"],
        "precision": precision,
    }
    report = run_export(make_settings(ExportSettings, export))
    assert report.step == 20
    assert report.parity < 1e-4
    assert list(report.differences) == ["embedding", "semantic", "entity", "hash_logits"]
    assert (
        report.differences["embedding"] < {"float32": 1e-5, "float16": 1e-3, "int8": 0.1}[precision]
    )
    assert report.cosine > least

    encoder = load_encoder(str(tmp_path / "bundle"))
    texts = ["harbour tide", "falcon", "", "oven flour " * 40]
    found = encoder.encode(texts)
    model, _ = load_checkpoint(checkpoint)
    for row, text in enumerate(texts):
        ids = encoder._tokenizer.encode(text)[:48] or [0]
        with torch.no_grad():
            wanted = model(torch.tensor([ids]), torch.ones(1, len(ids)).long())
        assert float(found.vectors[row] @ wanted.embedding[0].numpy()) > least
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    alone = np.concatenate([encoder.encode([text]).vectors for text in texts])
    np.testing.assert_allclose((alone * found.vectors).sum(axis=1), 1, atol=1e-5)
    assert encoder.cuts == (256, 512, 768)
    assert encoder.max_tokens == 48

    sample = [json.loads(line)["b"] for line in Path(values["pairs"][0]).read_text().splitlines()]
    bits = np.array(
        [[code >> bit & 1 for bit in range(64)] for code in encoder.encode(sample).codes.tolist()]
    )
    assert np.abs(bits.mean(0) - 0.5).max() < 0.2
