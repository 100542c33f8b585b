"""Read a bundle's weights back into a network, to train it further."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from nexus_vdb.errors import ModelError
from nexus_vdb.model.config import NexusConfig
from nexus_vdb.model.export import run_onnx, run_torch
from nexus_vdb.model.network import NexusModel

__all__ = ["load_bundle"]

_LEAST = 0.999  # mean cosine between bundle and network; rounded activations cost .0002

Array = npt.NDArray[Any]


def load_bundle(folder: Path) -> NexusModel:
    """The network of a bundle in float32, whatever precision the bundle keeps its weights in.

    Raises:
        ModelError: the folder is no bundle, or the network does not do what the bundle does.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        fields = {key: value for key, value in settings.items() if key in NexusConfig.model_fields}
        model = NexusModel(NexusConfig.model_validate(fields))
        _fill(model, onnx.load(folder / "model.onnx").graph)
    except Exception as error:  # of files, JSON, protobuf, pydantic, and of names not found
        raise ModelError(f"cannot read the weights of {folder}: {error}") from error
    _compare(model, folder / "model.onnx")
    return model


@torch.no_grad()
def _fill(model: NexusModel, graph: onnx.GraphProto) -> None:
    """Copy the constants of the graph into the network.

    The exporter keeps the names of most parameters. Tables, and what is multiplied from the right,
    it renames: these are recognised by their place in the order of the products and look-ups.
    """
    constants = _constants(graph)
    rest = dict(model.named_parameters())
    for name in list(rest):
        if (value := constants.get(f"model.{name}")) is not None:
            _copy(rest.pop(name), value)
    products = [name for name in rest if name.startswith("blocks.") or name == "pooling.queries"]
    matrices = [
        constants[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    ]
    for name, value in zip(products, matrices[: len(products)], strict=True):
        _copy(rest.pop(name), value if name == "pooling.queries" else value.T)
    tables = [name for name in rest if model.get_parameter(name).ndim == 2]
    of_pieces, of_pairs = _looked_up(graph, constants)
    if model.bag is not None:
        terms = [rows for rows in of_pieces if rows.dtype == np.int32]
        if not terms:
            raise ValueError("no bag.terms in the graph")
        model.bag.terms.copy_(torch.from_numpy(np.array(terms[0])))
    of_pieces = [rows for rows in of_pieces if rows.dtype != np.int32]
    tables.sort(key=lambda name: name == "bigrams.table.weight")
    for name, value in zip(tables, _tables([*of_pieces, *of_pairs[1:]]), strict=True):
        _copy(rest.pop(name), value)
    if model.bigrams is not None:
        model.bigrams.keys.copy_(torch.from_numpy(np.array(of_pairs[0])))
    if "bag.log_k1" in rest:
        _copy(rest.pop("bag.log_k1"), np.log(_saturation(graph, constants) - 1))
    if rest:
        raise ValueError(f"no {', '.join(rest)} in the graph")


def _copy(parameter: torch.nn.Parameter, value: Array) -> None:
    if parameter.shape != value.shape:
        raise ValueError(f"a weight of {value.shape} where {tuple(parameter.shape)} is expected")
    parameter.copy_(torch.from_numpy(np.array(value, dtype=np.float32)))


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """Initializers by name, and what casts and dequantizers make of them under the name it gets."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        name = node.input[0] if node.input else ""
        if name not in found:
            continue
        if node.op_type == "Cast":
            found[name.removesuffix("_half")] = found[name].astype(np.float32)
        elif node.op_type == "DequantizeLinear":
            scale, zero = (found[other] for other in node.input[1:])
            whole = found[name].astype(np.float32) - zero.astype(np.float32)
            found[name.removesuffix("_quantized")] = found[node.output[0]] = whole * scale
    return found


def _looked_up(
    graph: onnx.GraphProto, constants: Mapping[str, Array]
) -> tuple[list[Array], list[Array]]:
    """What is looked up by pieces, and by pairs of them, each in its order.

    Of the latter the first is the only one of whole numbers: the pairs that the slots belong to.
    """
    found = [
        (node.input[1], constants[node.input[0]])
        for node in graph.node
        if node.op_type == "GatherND" and node.input[0] in constants
    ]
    slots = next((index for index, rows in found if rows.dtype == np.int64), "")
    return (
        [rows for index, rows in found if index != slots],
        [rows for index, rows in found if index == slots],
    )


def _tables(found: Iterable[Array]) -> Iterator[Array]:
    """Tables of what is looked up: signs of bits, or int8 times the scales of its rows."""
    parts = iter(found)
    for rows in parts:
        if rows.dtype == np.uint8:
            yield 2.0 * np.unpackbits(rows, axis=1, bitorder="little") - 1
        else:
            yield rows.astype(np.float32) * next(parts)


def _saturation(graph: onnx.GraphProto, constants: Mapping[str, Array]) -> Array:
    """The bag's k1 + 1, folded by the exporter: the only constant that something divides."""
    return next(
        constants[node.input[0]]
        for node in graph.node
        if node.op_type == "Div" and node.input[0] in constants
    )


def _compare(model: NexusModel, path: Path) -> None:
    random = np.random.default_rng(0)
    ids = random.integers(5, model.config.vocab_size, (16, min(24, model.config.max_seq_len)))
    mask = np.ones_like(ids)
    one, other = run_torch(model, ids, mask), run_onnx(path, ids, mask, plain=True)
    cosine = float((one["embedding"] * other["embedding"]).sum(1).mean())
    if not cosine > _LEAST:
        raise ModelError(
            f"the weights read from {path} give other vectors (cosine {cosine:.4f})",
            hint="export the bundle anew with this version",
        )
