"""From a checkpoint to a bundle: the folder that is shipped and searched with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open

from nexus_vdb.errors import ModelError
from nexus_vdb.model.config import NexusConfig
from nexus_vdb.model.network import NexusModel

__all__ = ["load_checkpoint", "write_config"]

_PREFIX = "weights.model."
_MEAN = "ema."


def load_checkpoint(path: Path) -> tuple[NexusModel, int]:
    """The network of a training checkpoint, in eval mode, and the step it was written at.

    Where the run kept a running mean of the weights, that is what is loaded.

    Raises:
        ModelError: the file is missing or is no checkpoint of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {
                name.removeprefix(prefix): file.get_tensor(name)
                for prefix in (_PREFIX, _MEAN)
                for name in file.keys()  # noqa: SIM118
                if name.startswith(prefix)
            }
        model = NexusModel(NexusConfig.model_validate_json(metadata["config"]))
        model.load_state_dict(weights)
        step = int(metadata["step"])
    except Exception as error:  # safetensors raises types of its own
        raise ModelError(f"cannot load the checkpoint {path}: {error}") from error
    return model.eval(), step


def write_config(model: NexusModel, folder: Path, *, max_tokens: int, tokenizer: Path) -> None:
    """Write `config.json` and `tokenizer.model` of a bundle.

    Args:
        model: Whose sizes are written.
        folder: The bundle.
        max_tokens: Where the encoder cuts a text.
        tokenizer: The SentencePiece file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.model_dump(mode="json") | {"max_tokens": max_tokens}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
