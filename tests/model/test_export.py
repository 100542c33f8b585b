"""Parts of the export that a whole one does not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nexus_vdb.model.config import NexusConfig
from nexus_vdb.model.export import export_onnx, quantize
from nexus_vdb.model.network import NexusModel


def test_scales_do_not_depend_on_how_many_texts_are_seen_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 48}
    export_onnx(NexusModel(NexusConfig(**sizes, dropout=0.0)), tmp_path / "plain.onnx")
    ids = np.random.default_rng(0).integers(1, 300, size=(5, 9))
    scales = []
    for tokens in (1, 20, 10_000):  # a text, two of them, all
        monkeypatch.setattr("nexus_vdb.model.export._CALIBRATED", tokens)
        target = tmp_path / f"{tokens}.onnx"
        quantize(tmp_path / "plain.onnx", target, [(ids, np.ones_like(ids))])
        graph = onnx.load(target).graph
        scales.append(
            {
                tensor.name: onnx.numpy_helper.to_array(tensor)
                for tensor in graph.initializer
                if tensor.name.endswith("_scale")
            }
        )
    assert scales[0]
    for found in scales[1:]:
        assert found.keys() == scales[0].keys()
        for name, scale in found.items():
            np.testing.assert_allclose(scale, scales[0][name], rtol=1e-4)
