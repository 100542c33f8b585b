"""A teacher in int8 on ONNX Runtime: on a CPU it sees more texts in an hour than with torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from nexus_vdb.errors import ModelError
from nexus_vdb.model.export import quiet
from nexus_vdb.threads import in_threads

__all__ = ["Int8Encoder"]

_TOKENS = {True: 512, False: 4096}  # padded, of a batch; of each thread, or of all together
_LEAST = 0.97  # cosine of a text's vector to the model's own
_CHECKED = ("A heart attack.", "It rains on the hills in spring, and the river rises.")


class Int8Encoder:
    """A sentence-transformers model, quantized as ONNX Runtime advises: dynamic, eight-bit weights.

    The scale of a layer's input is found for a whole batch, so that a text's vector depends a
    little on its neighbours: the cosine to the model's own vector is about .99. Where outliers
    within the feed-forward parts spoil that (Bondarenko et al. 2021, arXiv:2109.12948), the
    products that read them stay in float32.

    Args:
        model: A `SentenceTransformer` on the CPU, in float32.
        threads: To use in all.
        apart: Whether each thread has a batch of its own: quicker than all on one.

    Raises:
        ModelError: the model cannot be exported, or is another one in int8.
    """

    def __init__(self, model: Any, *, threads: int, apart: bool = True) -> None:
        self._model, self._threads, self._apart = model, threads, apart
        with TemporaryDirectory() as folder:
            plain = _exported(model, Path(folder) / "plain.onnx")
            for sparing in (False, True):
                self._session = self._start(_quantized(plain, _narrowing(plain) if sparing else []))
                if (likeness := self._likeness()) >= _LEAST:
                    return
        raise ModelError(
            f"in int8 this teacher is another model: a cosine of {likeness:.2f} to itself",
            hint="leave teacher_int8 out",
        )

    def _start(self, path: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1 if self._apart else self._threads
        return onnxruntime.InferenceSession(path, options)

    def _likeness(self) -> float:
        own = self._model.encode(list(_CHECKED), normalize_embeddings=True)
        return float((self.encode(_CHECKED) * own).sum(1).min())

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors float32 `[n, d]`."""
        model = self._model
        rows = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)
        ids = rows["input_ids"]
        batches = _batches([len(row) for row in ids], _TOKENS[self._apart])

        def run(batch: list[int]) -> npt.NDArray[np.float32]:
            feed = _padded([ids[row] for row in batch])
            found: npt.NDArray[np.float32] = self._session.run(None, feed)[0]
            return found

        parts = in_threads(run, batches, threads=self._threads if self._apart else 1)
        order = np.concatenate(batches)
        vectors = np.empty((len(ids), parts[0].shape[1]), np.float32)
        vectors[order] = np.concatenate(parts)
        return vectors


class _Whole(nn.Module):
    """All modules of the model, from ids to a unit vector."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask `[B, T]` → unit rows `[B, d]`."""
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        for part in self.parts:
            features = part(features)
        return nn.functional.normalize(features["sentence_embedding"], dim=-1)


def _exported(model: Any, path: Path) -> Path:
    ids = torch.ones(2, 7, dtype=torch.int64)
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            torch.onnx.export(
                _Whole(model).eval(),
                (ids, torch.ones_like(ids)),
                path,
                input_names=["input_ids", "attention_mask"],
                dynamo=True,
                dynamic_shapes=(shape, shape),
                external_data=False,
                verbose=False,
            )
    except (RuntimeError, TypeError, KeyError) as error:
        raise ModelError(
            f"this teacher cannot be exported: {error}", hint="leave teacher_int8 out"
        ) from error
    return path


def _quantized(plain: Path, spared: list[str]) -> Path:
    small = plain.with_name("int8.onnx")
    with quiet():
        quantize_dynamic(
            plain,
            small,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=spared,
        )
    return small


def _narrowing(path: Path) -> list[str]:
    """Names of the products with a matrix of more rows than columns."""
    graph = onnx.load(path).graph
    matrices = {one.name: tuple(one.dims) for one in graph.initializer if len(one.dims) == 2}
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul"
        for rows, columns in [matrices.get(node.input[1], (0, 0))]
        if rows > columns
    ]


def _batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Texts of like length together, the longest first, as many as fill so many padded tokens."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    batches = []
    while order:
        size = max(1, tokens // max(1, lengths[order[-1]]))
        batches.append(order[-size:])
        order = order[:-size]
    return batches


def _padded(rows: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[np.int64]]:
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}
