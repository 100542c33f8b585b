"""Texts to vectors with a bundle: SentencePiece and ONNX Runtime, nothing else.

A bundle is a folder of `model.onnx`, `tokenizer.model`, `config.json` and `card.md`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import sentencepiece

from nexus_vdb.errors import ConfigError, ModelError
from nexus_vdb.hashing import pack
from nexus_vdb.ranking import Rows
from nexus_vdb.threads import in_threads
from nexus_vdb.types import Floats, QueryBatch

__all__ = ["DEFAULT_BUNDLE", "OnnxEncoder", "find_bundle", "load_encoder"]

DEFAULT_BUNDLE = "nexus-emb-edge"

_BUNDLES = Path(__file__).parent / "bundles"
_FILES = ("config.json", "model.onnx", "tokenizer.model")
_HEADS = ("embedding", "semantic", "entity")
_CUDA = "CUDAExecutionProvider"

_BATCH_TOKENS, _GPU_TOKENS = 512, 16_384
"""Padded tokens of one run. What a core works on should stay in its cache: 4,096 take a third
longer each."""


def load_encoder(name: str | None = None, *, threads: int | None = None) -> OnnxEncoder:
    """The encoder of a shipped bundle's name or of a bundle folder; the shipped one by default.

    Raises:
        ModelError: there is no such bundle, or it is not whole.
    """
    return OnnxEncoder(find_bundle(name), threads=threads)


def find_bundle(name: str | None = None) -> Path:
    """The folder of a shipped bundle's name, or of a path; the shipped one by default.

    Raises:
        ModelError: there is no such bundle.
    """
    folder = Path(name) if name and Path(name).is_dir() else _BUNDLES / (name or DEFAULT_BUNDLE)
    if not folder.is_dir():
        shipped = sorted(path.parent.name for path in _BUNDLES.glob("*/model.onnx"))
        raise ModelError(
            f"no model {name or DEFAULT_BUNDLE!r}",
            hint=f"give a bundle folder, or one of: {', '.join(shipped) or 'none shipped'}",
        )
    return folder


class OnnxEncoder:
    """Meets `interfaces.Encoder`.

    Args:
        folder: A bundle.
        threads: That embed side by side, each texts of its own; by default OMP_NUM_THREADS, or all
            cores.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        contents = {}
        for file in _FILES:
            try:
                contents[file] = (folder / file).read_bytes()
            except OSError as error:
                raise ModelError(
                    f"{folder} is no model bundle: {file}: {error.strerror}",
                    hint="make one by `nexus-vdb export`",
                ) from error
        self.name = folder.name
        self._folder, self._given = folder, threads
        self.fingerprint = _fingerprint(contents)
        try:
            config: dict[str, Any] = json.loads(contents["config.json"])
            self.max_tokens = int(config["max_tokens"])
            self.cuts = tuple(sorted(config["matryoshka_dims"]))
            self._tokenizer = sentencepiece.SentencePieceProcessor(
                model_proto=contents["tokenizer.model"]
            )
            self._session = onnxruntime.InferenceSession(
                contents["model.onnx"], _options(), providers=_providers()
            )
        except Exception as error:  # each library has errors of its own
            raise ModelError(f"{folder} is damaged: {error}") from error
        self.dim = self.cuts[-1]
        self._threads, self._budget = threads or _cores(), _BATCH_TOKENS
        if _CUDA in self._session.get_providers():
            self._threads, self._budget = 1, _GPU_TOKENS

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process loads the bundle for itself, with the threads that it has there."""
        shipped = self._folder.parent == _BUNDLES
        name = self.name if shipped else str(self._folder.absolute())
        return partial(load_encoder, name, threads=self._given), ()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens in each text."""
        # One by one: for a list threads are started, which beside `encode` wait for a core.
        encode = self._tokenizer.encode
        return [len(encode(text)) for text in texts]

    def encode(self, texts: Sequence[str]) -> QueryBatch:
        """Embed texts, in their order; what is past `max_tokens` of a text is not seen."""
        vectors, logits = self._run(texts, ("embedding", "hash_logits"))
        return QueryBatch(vectors, logits, pack(logits))

    def encode_head(self, texts: Sequence[str], head: str) -> Floats:
        """One output alone: "embedding" `[n, 768]`, "semantic" `[n, 512]` or "entity" `[n, 256]`.

        Raises:
            ConfigError: there is no such head.
        """
        if head not in _HEADS:
            raise ConfigError(f"Invalid head={head}; valid: {', '.join(_HEADS)}")
        return self._run(texts, (head,))[0]

    def encode_heads(self, texts: Sequence[str]) -> tuple[QueryBatch, dict[str, Floats]]:
        """As `encode`, with "semantic" `[n, 512]` and "entity" `[n, 256]` from the same run."""
        vectors, logits, semantic, entity = self._run(
            texts, ("embedding", "hash_logits", "semantic", "entity")
        )
        heads = {"semantic": semantic, "entity": entity}
        return QueryBatch(vectors, logits, pack(logits)), heads

    def _run(self, texts: Sequence[str], outputs: tuple[str, ...]) -> list[Floats]:
        limit = self.max_tokens
        # A text without a single piece (white space) is a lone padding token: a fixed vector.
        tokens = [ids[:limit] or [0] for ids in self._tokenizer.encode(list(texts))]
        widths = [self._width(name) for name in outputs]
        columns = [np.empty((len(tokens), width), np.float32) for width in widths]

        def fill(rows: Rows) -> None:
            feed = _padded([tokens[row] for row in rows])
            for column, values in zip(columns, self._session.run(outputs, feed), strict=True):
                column[rows] = values

        lengths = [len(ids) for ids in tokens]
        share = max(sum(lengths) // self._threads, 1)
        batches = list(_batches(lengths, min(share, self._budget)))
        in_threads(fill, batches[::-1], threads=self._threads)  # the longest first, to end together
        return columns

    def _width(self, output: str) -> int:
        return next(int(o.shape[1]) for o in self._session.get_outputs() if o.name == output)


def _fingerprint(contents: dict[str, bytes]) -> str:
    """SHA-256 over the files that decide the vectors, by name and content."""
    whole = hashlib.sha256()
    for name in sorted(contents):
        whole.update(name.encode() + hashlib.sha256(contents[name]).digest())
    return whole.hexdigest()


def _providers() -> list[str]:
    """The processor, after a GPU where there is one and ONNX Runtime is built for it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    there = _CUDA in onnxruntime.get_available_providers() and not hidden
    return [*([_CUDA] if there else []), "CPUExecutionProvider"]


def _cores() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return (int(given) if given.isdecimal() else 0) or os.cpu_count() or 1


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # Threads that share the work on one batch wait for each other at every layer.
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _batches(lengths: Sequence[int], budget: int) -> Iterator[Rows]:
    """Rows of like lengths together, each batch within the budget of padded tokens."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        # Sorted upwards: the next row would be the batch's longest.
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > budget:
            yield order[start:end]
            start = end


def _padded(tokens: list[list[int]]) -> dict[str, npt.NDArray[np.int64]]:
    lengths = np.array([len(ids) for ids in tokens])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = [token for row in tokens for token in row]
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
