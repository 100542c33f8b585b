"""Settings of a job: a TOML file, overridden by options, checked as a whole."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from nexus_vdb.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Settings", "load_settings", "make_settings"]


class Settings(BaseModel):
    """Base of a job's settings: a key that is not known is an error, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnyModel = TypeVar("AnyModel", bound=BaseModel)


def make_settings(model: type[AnyModel], values: Mapping[str, Any]) -> AnyModel:
    """Check values against a model.

    Raises:
        ConfigError: a key is unknown or missing, or a value is wrong; names the key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_line(model, error.errors()[0])) from None


def load_settings(
    model: type[AnyModel], path: Path | None, overrides: Mapping[str, Any]
) -> AnyModel:
    """Read a TOML file, if there is one, and put options over it; None is an option not given.

    An option that is a mapping goes over the table of its name, key by key.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or missing, or a value is wrong.
    """
    return make_settings(model, _over(_read(path) if path else {}, overrides))


def _over(table: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            merged[key] = _over(merged.get(key, {}), value)
        elif value is not None:
            merged[key] = value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read settings from {path}: {reason}") from error


def _line(model: type[BaseModel], error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{key} is not set"
    if error["type"] == "extra_forbidden":
        valid = ", ".join(_fields(model, error["loc"][:-1]))
    else:
        valid = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"Invalid {key}={error['input']!r}; valid: {valid}"


def _fields(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Keys of the table at `place`, for settings that have tables within."""
    for part in place:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return sorted(model.model_fields)
