"""Options that stand in the URL of a Qdrant store, server and edge, after the question mark."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from nexus_vdb.connectors._qdrant_filter import index_key
from nexus_vdb.errors import ConfigError

__all__ = ["Layout", "parse_numbers", "split_options"]

_KINDS = {"keyword": "keyword", "number": "float", "bool": "bool", "date": "datetime"}
"""What a metadata field holds, and the payload index for it. Numbers are always indexed as floats:
an index of integers would not find 2020.0 where 2020 is asked for."""

_NUMBERS = {"hnsw": 0, "shards": 1, "replicas": 1}
_POSITIVE = {"shards", "replicas"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a collection is made.

    Attributes:
        hnsw: Edges per node of a graph over the whole vector, which is searched instead of the
            hash then; 0 for none.
        shards: Parts that the collection is cut into, to lie on several nodes.
        replicas: Copies of each shard.
        index: Kind of payload index by payload key; in the URL, `outer.inner:kind` of metadata.
    """

    hnsw: int = 0
    shards: int = 1
    replicas: int = 1
    index: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, options: Mapping[str, str], *, also_valid: Collection[str] = ()) -> Layout:
        """Read `hnsw=16&shards=2&replicas=2&index=year:number,tags:keyword`.

        Args:
            options: By name.
            also_valid: Names that the caller reads; for the error.

        Raises:
            ConfigError: an option is unknown or has a wrong value.
            FilterError: a field to be indexed is no path.
        """
        valid = [*also_valid, *_NUMBERS, "index"]
        for name in options:
            if name not in valid:
                raise ConfigError(f"unknown option {name!r} in a URL; valid: {', '.join(valid)}")
        own, rest = split_options(options, _NUMBERS)
        numbers = parse_numbers(own, _NUMBERS, positive=_POSITIVE)
        return cls(**numbers, index=_parse_index(rest.get("index", "")))


def split_options(
    options: Mapping[str, str], names: Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Those of these names, and the others."""
    own = {name: value for name, value in options.items() if name in names}
    return own, {name: value for name, value in options.items() if name not in names}


def parse_numbers(
    options: Mapping[str, str], defaults: Mapping[str, int], *, positive: Collection[str]
) -> dict[str, int]:
    """Whole numbers by name, with defaults.

    Raises:
        ConfigError: one is no number, or 0 though it is among `positive`.
    """
    numbers = dict(defaults)
    for name, value in options.items():
        least = int(name in positive)
        if not (value.isascii() and value.isdecimal()) or int(value) < least:
            raise ConfigError(f"Invalid {name}={value!r} in a URL; valid: {least} or more")
        numbers[name] = int(value)
    return numbers


def _parse_index(text: str) -> dict[str, str]:
    kinds = {}
    for one in filter(None, text.split(",")):
        name, _, kind = one.rpartition(":")
        if not name or kind not in _KINDS:
            raise ConfigError(
                f"Invalid index={one!r} in a URL; valid: FIELD:KIND with a kind of "
                + ", ".join(_KINDS),
                hint="for example ?index=year:number,tags:keyword",
            )
        kinds[index_key(name, _KINDS[kind])] = _KINDS[kind]
    return kinds
