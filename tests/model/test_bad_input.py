"""What training refuses, leaves out or cuts, and how it says so; parts that are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nexus_vdb.encoder import load_encoder
from nexus_vdb.errors import ConfigError, ModelError, SourceError
from nexus_vdb.model.bundle import load_checkpoint
from nexus_vdb.model.data import read_pairs
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
        "schedule": {"steps": 6, "batch": 32, "warmup": 2, "checkpoint_every": 3},
    }


def settings(values: dict[str, Any], **schedule: Any) -> TrainSettings:
    return make_settings(TrainSettings, values | {"schedule": values["schedule"] | schedule})


def test_what_is_left_out_and_cut_is_counted(values: Any, pairs_file: Path, tmp_path: Path) -> None:
    bad: list[dict[str, object]] = [
        {"a": "alone"},
        {"a": "alone", "b": None},
        {"a": "harbour", "b": " \n"},
        {"a": "harbour", "b": "tide", "negatives": ["oven", "", 3]},
        {"a": "harbour " * 60, "b": "tide"},
        {"a": "x!" * 100, "b": "tide"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([*map(json.dumps, bad), pairs_file.read_text()]))
    said: list[str] = []
    values |= {"pairs": [str(path)], "fields": ["a", "b"]}
    run_training(settings(values, steps=1), say=said.append)
    assert said[0] == (
        "603 pairs read; left out: 2 (a text without a partner); left out: 1 (an empty text); "
        "left out: 1 (a negative that is no text, or empty)"
    )
    assert said[1].endswith("of 1,206 texts are cut, to at most 300 and 600 characters")
    cut = next(line for line in said if "tokens" in line)
    assert cut.endswith("of 1,206 texts are longer than 48 tokens, and cut there")
    assert cut.startswith("1 of")  # the 100 marks; 300 characters of harbours are fewer
    network = load_checkpoint(values["out"] / "step-0000001.safetensors")[0]
    parameters = sum(one.numel() for one in network.parameters())
    assert f"{parameters:,} parameters, 503 pairs" in said


@pytest.mark.parametrize(("most", "said"), [(602, ", more are left unread"), (603, "")])
def test_pairs_past_the_limit_are_told(
    values: Any, most: int, said: str, pairs_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(pairs_file.read_text().rstrip() + '\n{"a": "one", "b": "more"}' * 3)
    heard: list[str] = []
    values |= {"pairs": [str(path)], "fields": ["a", "b"], "max_pairs": most}
    run_training(settings(values, steps=1), say=heard.append)
    assert heard[0] == f"{most} pairs read{said}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": "x", "b"', "line 2 is no JSON"),
        ('["a", "b"]', "line 2 is no object"),
        ("b\xe9", "utf-8"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"a": "x", "b": "y"}\n' + line.encode("latin-1"))
    with pytest.raises(SourceError, match=message) as caught:
        list(read_pairs([path]))
    assert str(path) in str(caught.value)


def test_pairs_that_are_none_at_all_are_counted(values: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([json.dumps({"a": "harbour", "b": ""})] * 300))
    with pytest.raises(SourceError, match=r"0 pairs, .* left out: 300 \(an empty text\)"):
        run_training(settings(values | {"pairs": [str(path)]}))


def test_a_topic_below_zero_is_none(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"a": "x", "b": "y", "topic": -5}')
    assert [pair.topic for pair in read_pairs([path])] == [-1]


def test_too_small_a_holdout_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="Invalid holdout=3"):
        settings(values | {"holdout": 3})


def test_a_rate_that_is_far_too_high_is_an_error_and_no_checkpoint(values: Any) -> None:
    with pytest.raises(ModelError, match="(loss|gradient) is (nan|inf) at step") as caught:
        run_training(settings(values, steps=60, learning_rate=1e30, checkpoint_every=100))
    assert caught.value.hint == "there is no checkpoint yet; lower the learning rate"
    assert list(values["out"].glob("*.safetensors")) == []


def test_a_checkpoint_without_the_newer_switches_goes_on(values: Any) -> None:
    path = run_training(settings(values))
    config = json.loads(load_checkpoint(path)[0].config.model_dump_json())
    for key in ("entity_bag", "nsa", "hash_residual"):
        del config[key]
    tensors = load_file(path)
    save_file(tensors, path, metadata={"step": "6", "config": json.dumps(config)})
    assert run_training(settings(values, steps=8)).stem == "step-0000008"


def test_a_file_that_is_no_checkpoint_is_refused(values: Any) -> None:
    values["out"].mkdir()
    save_file({"x": torch.zeros(2)}, values["out"] / "step-0000005.safetensors")
    with pytest.raises(ConfigError, match="checkpoint of another network"):
        run_training(settings(values))


@pytest.mark.parametrize("off", [["entity_bag", "nsa"], ["hash_residual"]], ids=" ".join)
def test_a_model_without_a_part_trains_exports_and_encodes(
    values: Any, tmp_path: Path, off: list[str]
) -> None:
    network = tmp_path / "network.json"
    sizes = json.loads(values["network"].read_text())
    network.write_text(json.dumps(sizes | dict.fromkeys(off, False)))
    values |= {"network": network}
    run_training(settings(values, chunk=8))
    export = {
        "checkpoint": values["out"],
        "tokenizer": values["tokenizer"],
        "out": tmp_path / "bundle",
        "sample": values["pairs"],
        "precision": "int8",
    }
    assert run_export(make_settings(ExportSettings, export)).parity < 1e-4
    encoder = load_encoder(str(tmp_path / "bundle"))
    texts = ["harbour tide", "harbour tide vessel", "oven flour saffron"]
    found, heads = encoder.encode_heads(texts)
    assert {name: rows.shape[1] for name, rows in heads.items()} == {"semantic": 512, "entity": 256}
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-4)
    assert found.vectors[0] @ found.vectors[1] > found.vectors[0] @ found.vectors[2]
    assert len(set(found.codes.tolist())) == 3
