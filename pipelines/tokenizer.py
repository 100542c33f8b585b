"""The tokenizer job: texts → `tokenizer.model`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from nexus_vdb.model.data import expand, read_texts
from nexus_vdb.model.tokenizer import train_tokenizer
from nexus_vdb.settings import Settings

__all__ = ["TokenizerSettings", "run_tokenizer"]


class TokenizerSettings(Settings):
    """What the tokenizer is trained on, and how large it is."""

    texts: list[str]
    out: Path
    vocab_size: int = Field(48_000, ge=300, le=65_536)
    user_symbols: list[str] = []
    sample: int = Field(500_000, ge=1)
    character_coverage: float = Field(0.9999, gt=0, le=1)
    threads: int = Field(2, ge=1)


def run_tokenizer(settings: TokenizerSettings) -> Path:
    """Train and write the tokenizer; returns its path.

    Raises:
        SourceError: a file of texts cannot be read.
        ConfigError: the texts cannot give so many pieces.
    """
    model = train_tokenizer(
        read_texts(expand(settings.texts)),
        vocab_size=settings.vocab_size,
        user_symbols=settings.user_symbols,
        sample=settings.sample,
        character_coverage=settings.character_coverage,
        threads=settings.threads,
    )
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_bytes(model)
    return settings.out
