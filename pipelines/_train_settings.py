"""Everything a training run depends on; the keys of `configs/train.toml` and `distill.toml`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from nexus_vdb.model.schedule import LossWeights, Schedule
from nexus_vdb.settings import Settings

__all__ = ["TextSettings", "TrainSettings"]


def _listed(value: Any) -> Any:
    """One name is a list of one; "" is none."""
    if isinstance(value, str):
        return [value] if value else []
    return value


class TextSettings(Settings):
    """How texts are cut before they are tokenised: long ones cost more than they teach."""

    max_tokens: int = Field(192, ge=8)
    max_chars_a: int = 300
    min_chars_b: int = 60
    max_chars_b: int = 600


class TrainSettings(Settings):
    """Everything a training run depends on.

    Attributes:
        start: Bundle, shipped or a folder, whose weights the run begins with; of the same network
            and tokenizer. With `refit` its `bag_dim` may be another. Of several, their mean.
        freeze: Parts of the network that are not trained: "blocks", "tokens", "bag.table" …
        stemmer: Snowball language by which pieces are one term to the entity head; "" for none.
        refit: Fit entity bag, gates, fusion and hash anew, though the run has a `start`.
        fit_fusion: Fit fusion and hash anew before each checkpoint of the schedule, but where a
            `start` brings them along, or where there are too few texts.
        entity_weight: Length of the entity part of the fused vector at the start, beside the
            semantic part's.
        skip_pairs: Pairs left out at the beginning, after `source_weights`: those that a run before
            this one has seen.
        teacher_int8: Run the teachers in int8 on ONNX Runtime where the device is the CPU: quicker,
            their vectors at a cosine of .99 to their own.
        teacher_cache: Where the teachers' vectors are kept; by default in the run's folder.
    """

    network: Path
    tokenizer: Path
    pairs: list[str]
    out: Path = Path("runs/train")
    start: Annotated[list[str], BeforeValidator(_listed)] = []
    freeze: list[str] = []
    stemmer: str = "english"
    refit: bool = False
    fit_fusion: bool = True
    entity_weight: float = Field(0.6, gt=0)
    fields: list[str] = []
    source_weights: dict[str, float] = {}
    skip_pairs: int = Field(0, ge=0)
    max_pairs: int = Field(200_000, ge=1)
    holdout: int = Field(2000, ge=20)
    teachers: list[str] = []
    teacher_int8: bool = False
    teacher_cache: Path | None = None
    device: str = "cpu"
    minutes: float = math.inf
    seed: int = 0
    text: TextSettings = TextSettings()
    schedule: Schedule = Schedule()
    losses: LossWeights = LossWeights()
