"""The settings of a NEXUS-EMB network, read from JSON."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nexus_vdb.errors import ConfigError

__all__ = ["NexusConfig", "load_config"]


class NexusConfig(BaseModel):
    """Sizes and switches; the defaults are the published 240M settings, and a bag of 512.

    Attributes:
        bigrams: Frequent pairs of pieces that have vectors of their own; 0 for none.
        bag_dim: Numbers that names are kept in; the entity head gives the first `entity_dim` of
            them, the fused vector is made of all.
        entity_bag: Whether the entity head reads the pieces themselves, beside the pooled state.
        nsa: Whether there are spectral coordinates (neural spectral anchoring).
        hash_residual: Whether the hash has a linear residual of the fused embedding.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(48_000, ge=256, le=65_536)
    d_model: int = Field(896, ge=8)
    n_layers: int = Field(18, ge=0)
    n_heads: int = Field(14, ge=1)
    d_ff: int = Field(2304, ge=8)
    dropout: float = Field(0.05, ge=0, lt=1)
    max_seq_len: int = Field(2048, ge=1)
    rope: bool = False
    rope_theta: float = 10_000.0
    flash_attention: bool = False
    bigrams: int = Field(0, ge=0)
    n_topics: int = Field(16, ge=1)
    semantic_dim: int = 512
    entity_dim: int = 256
    bag_dim: int = Field(512, ge=8, multiple_of=8)
    anchor_dim: int = 256
    embedding_dim: int = 768
    matryoshka_dims: tuple[int, ...] = (768, 512, 256)
    hash_bits: int = Field(64, ge=64, le=64)
    entity_bag: bool = True
    nsa: bool = True
    hash_residual: bool = True

    @model_validator(mode="after")
    def _check(self) -> NexusConfig:
        head, odd = divmod(self.d_model, self.n_heads)
        if odd or (self.rope and head % 2):
            raise ValueError(f"d_model={self.d_model} does not divide into {self.n_heads} heads")
        if self.bag_dim < self.entity_dim:
            raise ValueError(f"bag_dim={self.bag_dim} is less than entity_dim={self.entity_dim}")
        if max(self.matryoshka_dims) != self.embedding_dim:
            raise ValueError("the widest of matryoshka_dims must be embedding_dim")
        if not (self.nsa or self.hash_residual):
            raise ValueError("nsa and hash_residual are both off: nothing is left to hash with")
        return self


def load_config(path: Path) -> NexusConfig:
    """Read a network's JSON file.

    Raises:
        ConfigError: the file is missing or broken, a key is unknown or a value is out of range.
    """
    try:
        return NexusConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {key + ': ' if key else ''}{first['msg']}") from error
