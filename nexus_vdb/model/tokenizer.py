"""Train and read the SentencePiece tokenizer.

Unigram language model (Kudo 2018, arXiv:1804.10959) with byte fallback, over text that is NFKC
normalised and case-folded: names match whatever their case, and the table stays small.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from nexus_vdb.errors import ConfigError, ModelError, SourceError
from nexus_vdb.model.data import reservoir

__all__ = ["PAD_ID", "UNK_ID", "load_tokenizer", "piece_texts", "train_tokenizer"]

PAD_ID = 0
UNK_ID = 1


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = 48_000,
    user_symbols: Sequence[str] = (),
    sample: int = 1_000_000,
    character_coverage: float = 0.9999,
    threads: int = 2,
) -> bytes:
    """The serialised model; `sample` texts are drawn by reservoir where there are more.

    Raises:
        ConfigError: the texts cannot give so many pieces.
        SourceError: there are no texts.
    """
    drawn = reservoir(texts, sample)
    if not any(text.strip() for text in drawn):
        raise SourceError("there is no text to train a tokenizer on", hint="name other files")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(drawn),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            user_defined_symbols=list(user_symbols),
            byte_fallback=True,
            character_coverage=character_coverage,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            eos_id=-1,
            max_sentence_length=16_384,
            num_threads=threads,
            minloglevel=1,
        )
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"no tokenizer of vocab_size={vocab_size} from these texts: {_reason(error)}",
            hint="lower --vocab-size, or give more text",
        ) from error
    return model.getvalue()


def _reason(error: Exception) -> str:
    """The last sentence of SentencePiece's message; what comes before are its own file and line."""
    return str(error).strip().rsplit("] ", 1)[-1] or type(error).__name__


def load_tokenizer(path: Path) -> Any:
    """The SentencePiece processor of a `tokenizer.model`.

    Raises:
        ModelError: the file is missing or is no SentencePiece model.
    """
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise ModelError(f"no tokenizer at {path}: {error}") from error


def piece_texts(tokenizer: Any) -> list[str]:
    """Each piece as a reader would write it, for a teacher to embed."""
    pieces = (tokenizer.id_to_piece(index) for index in range(tokenizer.get_piece_size()))
    return [piece.replace("▁", " ").strip() for piece in pieces]
