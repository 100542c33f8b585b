"""Turn a trained network into ONNX, float32 or int8, and check it against torch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from nexus_vdb.model.network import NexusModel

__all__ = ["OUTPUTS", "center_hash", "export_onnx", "parity", "quantize"]

OUTPUTS = ("embedding", "semantic", "entity", "hash_logits")

_OPSET = 18


class Exported(nn.Module):
    """The network with the outputs of a bundle, in their order."""

    def __init__(self, model: NexusModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Ids and mask int64 `[B, T]`."""
        output = self.model(input_ids, attention_mask)
        return tuple(getattr(output, name) for name in OUTPUTS)


class Int8Table(nn.Module):
    """An embedding table in int8 with one scale a row: a quarter of the size, 0.4 % error."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        weight = table.weight.detach()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        self.register_buffer("rows", torch.round(weight / scale).to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of any shape → float32 `[..., d]`."""
        rows, scale = self.get_buffer("rows"), self.get_buffer("scale")
        return rows[ids].float() * scale[ids]


@torch.no_grad()
def center_hash(model: NexusModel, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Move each bit's threshold to its median over a corpus sample, so that no bit is wasted."""
    model.eval()
    logits = torch.cat([model(ids, mask).hash_logits for ids, mask in batches])
    model.hash_residual.bias.sub_(logits.median(0).values)


def export_onnx(model: NexusModel, path: Path, *, int8_tables: bool = False) -> None:
    """Write `path` (opset 18; batch and length are dynamic); the model is left in eval mode.

    Args:
        model: On the CPU; with `int8_tables` its tables are replaced.
        path: The file to write.
        int8_tables: Keep the two wide tables in int8, row by row.
    """
    model.eval()
    if int8_tables:
        model.tokens = Int8Table(model.tokens)  # type: ignore[assignment]
        model.bag.table = Int8Table(model.bag.table)  # type: ignore[assignment]
    ids = torch.ones(2, 7, dtype=torch.int64)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            Exported(model),
            (ids, torch.ones_like(ids)),
            input_names=["input_ids", "attention_mask"],
            output_names=list(OUTPUTS),
            opset_version=_OPSET,
            dynamo=True,
            dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
            verbose=False,
        )
    assert program is not None
    outputs = set(map(id, program.model.graph.outputs))
    for node in program.model.graph:
        for value in node.outputs:
            # The exporter names a look-up in a table "embedding", as we name an output.
            if value.name in OUTPUTS and id(value) not in outputs:
                value.name = f"{value.name}_lookup"
    program.save(path, external_data=False)


def quantize(source: Path, target: Path) -> None:
    """Dynamic int8 of the matrix products, one scale a column; the tables are not touched."""
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "model.onnx"
        prepared.write_bytes(source.read_bytes())
        logging.getLogger().setLevel(logging.ERROR)
        quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


def parity(
    model: NexusModel, path: Path, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Largest absolute difference between torch and onnxruntime, by output."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(list(OUTPUTS), {"input_ids": ids, "attention_mask": mask})
    model.eval()
    with torch.no_grad():
        wanted = Exported(model)(torch.from_numpy(ids), torch.from_numpy(mask))
    pairs = zip(OUTPUTS, found, wanted, strict=True)
    return {name: float(np.abs(x - y.numpy()).max()) for name, x, y in pairs}
