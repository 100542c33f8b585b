"""What `nexus-vdb train` and `nexus-vdb distill` share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nexus_vdb.cli.common import progress_bar

if TYPE_CHECKING:
    from nexus_vdb.pipelines.train import TrainSettings

__all__ = ["log_bar", "training_options", "training_settings"]

F = TypeVar("F", bound=Callable[..., Any])

log_bar = partial(progress_bar, lines=True)
"""Progress that a log file shows too: training often runs where nobody watches."""

_SCHEDULE = ("steps", "batch", "learning_rate", "seed")
_TEXT = {"max_len": "max_tokens"}

_OPTIONS = (
    click.option("--network", type=click.Path(path_type=Path), help="JSON of the network."),
    click.option("--tokenizer", type=click.Path(path_type=Path), help="A tokenizer.model."),
    click.option(
        "--start",
        multiple=True,
        metavar="NAME|PATH",
        help="Go on from a bundle, such as nexus-emb-edge; of several, from their mean.",
    ),
    click.option("--pairs", multiple=True, metavar="FILE", help="Parquet or JSONL; may repeat."),
    click.option("--fields", metavar="A,B", help="Fields of a pair.  [a,b; text_a,text_b; …]"),
    click.option("--out", type=click.Path(path_type=Path), help="Run folder."),
    click.option("--max-pairs", type=int, metavar="N", help="Pairs to use at most."),
    click.option("--holdout", type=int, metavar="N", help="Pairs kept back to measure.  [2000]"),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[cpu]"),
    click.option("--minutes", type=float, metavar="N", help="Stop then, with a checkpoint."),
    click.option("--steps", type=int, metavar="N", help="Steps in all."),
    click.option("--batch", type=int, metavar="N", help="Pairs a step."),
    click.option("--max-len", type=int, metavar="N", help="Tokens a text is cut to."),
    click.option("--learning-rate", type=float, metavar="RATE", help="At its highest."),
    click.option("--seed", type=int, metavar="N", help="Of the order of the pairs."),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="TOML file of all settings, or the network's JSON; options override its keys.",
    ),
)


def training_options(function: F) -> F:
    """Add the options that both commands take."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def training_settings(config: Path | None, options: dict[str, Any]) -> TrainSettings:
    """The settings of file and options together.

    Raises:
        ConfigError: a key is unknown or missing, or a value is wrong.
    """
    from nexus_vdb.pipelines.train import TrainSettings
    from nexus_vdb.settings import load_settings

    if config is not None and config.suffix == ".json":  # a network alone: the rest by options
        options["network"], config = config, None
    for several in ("pairs", "teachers", "start"):
        if several in options:
            options[several] = list(options[several]) or None
    options["fields"] = options["fields"] and options["fields"].split(",")
    tables = {
        "schedule": {key: options.pop(key) for key in _SCHEDULE},
        "text": {key: options.pop(option) for option, key in _TEXT.items()},
    }
    return load_settings(TrainSettings, config, options | tables)
