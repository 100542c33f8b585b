"""Turn a trained network into ONNX: float32, float16 or int8; check it against torch."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch import Tensor, nn

from nexus_vdb.model.network import NexusModel

__all__ = [
    "OUTPUTS",
    "export_onnx",
    "halve",
    "parity",
    "quantize",
    "quiet",
    "run_onnx",
    "run_torch",
]

OUTPUTS = ("embedding", "semantic", "entity", "hash_logits")

_OPSET = 18

_LARGE = 1024  # numbers in a weight that is worth halving

_CALIBRATED = 1024
"""Tokens that the calibrator sees at a time: what each layer makes of them is held to the end."""

Outputs: TypeAlias = dict[str, npt.NDArray[np.float32]]
Batch: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


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


class SignTable(nn.Module):
    """An embedding table of nothing but 1 and -1, a bit each."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        bits = np.packbits(table.weight.detach().numpy() > 0, axis=1, bitorder="little")
        self.register_buffer("rows", torch.from_numpy(bits))
        octets = np.arange(256, dtype=np.uint8)[:, None]
        signs = 2 * np.unpackbits(octets, axis=1, bitorder="little").astype(np.float32) - 1
        self.register_buffer("signs", torch.from_numpy(signs))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of any shape → float32 `[..., d]`."""
        octets = self.get_buffer("rows")[ids].long()
        return nn.functional.embedding(octets, self.get_buffer("signs")).flatten(-2)


def _small_table(table: nn.Embedding) -> nn.Module:
    return SignTable(table) if (table.weight.abs() == 1).all() else Int8Table(table)


def export_onnx(model: NexusModel, path: Path, *, int8_tables: bool = False) -> None:
    """Write `path` (opset 18; batch and length are dynamic); the model is left in eval mode.

    Args:
        model: On the CPU; with `int8_tables` its tables are replaced.
        path: The file to write.
        int8_tables: Keep the wide tables in int8, row by row; in bits where they are signs.
    """
    model.eval()
    if int8_tables:
        model.tokens = _small_table(model.tokens)  # type: ignore[assignment]
        if model.bigrams is not None:
            model.bigrams.table = _small_table(model.bigrams.table)  # type: ignore[assignment]
        if model.bag is not None:
            model.bag.table = _small_table(model.bag.table)  # type: ignore[assignment]
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
        node.metadata_props.clear()  # stack traces, with the paths of this machine
        for value in node.outputs:
            value.metadata_props.clear()
            # The exporter names a look-up in a table "embedding", as we name an output.
            if value.name in OUTPUTS and id(value) not in outputs:
                value.name = f"{value.name}_lookup"
    program.save(path, external_data=False)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Feeds batches to the calibrator, a few texts at a time."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._feeds = (
            {"input_ids": ids[start : start + some], "attention_mask": mask[start : start + some]}
            for ids, mask in batches
            for some in [max(1, _CALIBRATED // ids.shape[1])]
            for start in range(0, len(ids), some)
        )

    def get_next(self) -> dict[str, npt.NDArray[np.int64]] | None:
        return next(self._feeds, None)


def quantize(source: Path, target: Path, batches: Iterable[Batch]) -> None:
    """Int8 matrix products, one weight scale a column; the tables are not touched.

    The scales of activations are fixed here, from what the batches give rise to. Scales found at
    run time would be those of a whole batch, and a text's vector would depend on its neighbours.

    Args:
        source: ONNX in float32.
        target: The file to write.
        batches: Ids and mask int64 `[B, T]`, of short and long texts.
    """
    graph = onnx.load(source).graph
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    with quiet(), TemporaryDirectory() as folder:
        prepared = Path(folder) / "model.onnx"
        prepared.write_bytes(source.read_bytes())
        quantize_static(
            prepared,
            target,
            _Calibration(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[node.name for node in products if node.input[1] in constants],
            per_channel=True,
            # Seven bits of weight: processors without VNNI add two products in 16 bits, and with
            # eight some sums are cut off there. Texts then had other vectors on other machines.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the advice that the quantizer logs."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def halve(source: Path, target: Path) -> None:
    """Weights in float16, half the size; sums and products stay in float32.

    ONNX Runtime turns them back when it loads the file, so a CPU, which has few float16 kernels,
    is as quick as with float32.

    Args:
        source: ONNX in float32.
        target: The file to write.
    """
    model = onnx.load(source)
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= _LARGE:
            name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
            half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half")
            tensor.CopyFrom(half)
            to = onnx.TensorProto.FLOAT
            casts.append(onnx.helper.make_node("Cast", [half.name], [name], to=to))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


@torch.no_grad()
def run_torch(
    model: NexusModel, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]
) -> Outputs:
    """What torch makes of a batch, by output; the model is left in eval mode."""
    values = Exported(model.eval())(torch.from_numpy(ids), torch.from_numpy(mask))
    return {name: value.numpy() for name, value in zip(OUTPUTS, values, strict=True)}


def run_onnx(
    path: Path, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], *, plain: bool = False
) -> Outputs:
    """What ONNX Runtime makes of a batch, by output.

    Args:
        path: The model.
        ids: Int64 `[B, T]`.
        mask: The same shape.
        plain: Run the graph as it is written, without the processor's own integer products.
    """
    options = onnxruntime.SessionOptions()
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    values = session.run(list(OUTPUTS), {"input_ids": ids, "attention_mask": mask})
    return dict(zip(OUTPUTS, values, strict=True))


def parity(one: Outputs, other: Outputs) -> dict[str, float]:
    """Largest absolute difference, by output."""
    return {name: float(np.abs(one[name] - other[name]).max()) for name in OUTPUTS}
