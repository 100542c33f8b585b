"""Every error a caller may want to catch, as types rather than strings.

NexusError
├── ConfigError            a setting is unknown or has a wrong value; names the key
├── FilterError            a `where` expression cannot be understood
├── SourceError            a corpus cannot be read; names file and row
├── ModelError             a model, tokenizer or bundle cannot be used
│   └── FingerprintMismatch    the store was made with another model
├── StoreError             a store refused or failed
│   ├── StoreNotFound          nothing is stored at that URL
│   ├── DimensionMismatch      vectors of another width than the store's
│   ├── StoreLocked            another writer holds the store
│   ├── StoreCorrupt           a file of the store is damaged; names it
│   └── StoreUnavailable       the server cannot be reached: the one that is retried
└── MissingExtra           an optional dependency is absent; gives the pip line
"""

__all__ = [
    "ConfigError",
    "DimensionMismatch",
    "FilterError",
    "FingerprintMismatch",
    "MissingExtra",
    "ModelError",
    "NexusError",
    "SourceError",
    "StoreCorrupt",
    "StoreError",
    "StoreLocked",
    "StoreNotFound",
    "StoreUnavailable",
]


class NexusError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: One line that says what is wrong.
        hint: One line that says what to do next.
    """

    exit_code = 3
    """Exit code of the command line: 2 for wrong usage, 3 for a job that could not run."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(NexusError):
    """A setting is unknown or has a value that cannot be used."""

    exit_code = 2


class FilterError(NexusError):
    """A `where` expression cannot be understood."""

    exit_code = 2


class SourceError(NexusError):
    """A corpus cannot be read."""


class ModelError(NexusError):
    """A model, tokenizer or bundle cannot be used."""


class FingerprintMismatch(ModelError):
    """The store was filled by another model than the one in use."""


class StoreError(NexusError):
    """A store refused or failed."""


class StoreNotFound(StoreError):
    """Nothing is stored at that URL."""


class DimensionMismatch(StoreError):
    """Vectors are of another width than the store's."""


class StoreLocked(StoreError):
    """Another writer holds the store."""


class StoreCorrupt(StoreError):
    """A file of the store is damaged."""


class StoreUnavailable(StoreError):
    """The server cannot be reached just now; the call may be tried again."""


class MissingExtra(NexusError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed",
            hint=f'pip install "nexus-vdb[{extra}]"',
        )
