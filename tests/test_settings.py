from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from nexus_vdb.errors import ConfigError
from nexus_vdb.settings import Settings, load_settings, make_settings


class Inner(Settings):
    rate: float = 0.1


class Sample(Settings):
    name: str
    size: int = Field(10, ge=1)
    mode: Literal["fast", "slow"] = "fast"
    inner: Inner = Inner()


def write(folder: Path, text: str) -> Path:
    path = folder / "sample.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_options_override_the_file_and_none_does_not(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "a"\nsize = 3\n[inner]\nrate = 0.5\n')
    found = load_settings(Sample, path, {"name": "b", "size": None})
    assert found == Sample(name="b", size=3, inner=Inner(rate=0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a"\nsise = 3', "Invalid sise=3; valid: inner, mode, name, size"),
        ('name = "a"\nsize = 0', "Invalid size=0; valid: greater than or equal to 1"),
        ('name = "a"\nmode = "odd"', "Invalid mode='odd'; valid: 'fast' or 'slow'"),
        ('name = "a"\n[inner]\nrat = 1', "Invalid inner.rat=1; valid: rate"),
        ("size = 3", "name is not set"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(Sample, write(tmp_path, text), {})
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read settings from .*absent.toml: No such file"):
        load_settings(Sample, tmp_path / "absent.toml", {})
    with pytest.raises(ConfigError, match="cannot read settings"):
        load_settings(Sample, write(tmp_path, "name = "), {})


def test_settings_do_not_change_later() -> None:
    settings = make_settings(Sample, {"name": "a"})
    with pytest.raises(ValueError, match="frozen"):
        settings.size = 4  # type: ignore[misc]
