"""Training texts: read from files, cut, tokenised once, kept as flat arrays.

Rows may be `a`/`b`, `text_a`/`text_b`, `anchor`/`positive`/`negative(s)` or fields named by the
caller; `topic` is optional.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.parquet

from nexus_vdb.errors import ConfigError, SourceError
from nexus_vdb.jsonvalue import HALF_PAIR

__all__ = [
    "Pair",
    "TokenTable",
    "cut_text",
    "expand",
    "read_pairs",
    "read_rows",
    "read_texts",
    "reservoir",
    "unread",
]

_T = TypeVar("_T")

_FIELD_PAIRS = (("a", "b"), ("text_a", "text_b"), ("anchor", "positive"))
_NEGATIVES = ("negatives", "negative")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts that belong together; `negatives` look alike but do not."""

    a: str
    b: str
    source: str = ""
    topic: int = -1
    negatives: tuple[str, ...] = ()


def expand(specs: Iterable[str]) -> list[Path]:
    """The files that paths and globs name, sorted within each; a path without a match stays."""
    found = ((spec, sorted(glob(spec, recursive=True))) for spec in specs)  # noqa: PTH207
    return [Path(path) for spec, paths in found for path in paths or [spec]]


def read_rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Rows of Parquet, JSONL or plain text (`{"text": line}`) files, in order.

    Half of a surrogate pair becomes U+FFFD.

    Raises:
        SourceError: a file is missing, broken, or of another kind.
    """
    for path in paths:
        if not path.is_file():
            raise SourceError(f"no such file: {path}")
        try:
            yield from _ROW_READERS[path.suffix](path)
        except KeyError as error:
            raise SourceError(
                f"cannot read {path}", hint=f"files end in one of: {', '.join(_ROW_READERS)}"
            ) from error
        except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
            raise SourceError(f"{path}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(4096):
        yield from batch.to_pylist()


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _object(line, number)


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is no JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no object")  # noqa: TRY004 - caught as a ValueError
    if "\\ud" in line.lower():
        return dict(json.loads(HALF_PAIR.sub("\ufffd", json.dumps(row, ensure_ascii=False))))
    return row


def _text_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from ({"text": line.strip()} for line in lines if line.strip())


_ROW_READERS = {".parquet": _parquet_rows, ".jsonl": _jsonl_rows, ".txt": _text_rows}


def read_texts(paths: Iterable[Path]) -> Iterator[str]:
    """Every non-empty string that the rows hold, whatever the field, but for `source` labels."""
    for row in read_rows(paths):
        for key, value in row.items():
            if isinstance(value, str) and value and key != "source":
                yield value


def reservoir(items: Iterable[_T], size: int, *, seed: int = 0) -> list[_T]:
    """A uniform sample of at most `size` items in one pass (Vitter's algorithm R)."""
    random = np.random.default_rng(seed)
    kept: list[_T] = []
    for seen, item in enumerate(items):
        if seen < size:
            kept.append(item)
        elif (place := int(random.integers(seen + 1))) < size:
            kept[place] = item
    return kept


def unread(rows: Iterator[object]) -> str:
    """Words that say so where rows are left; takes one of them."""
    return "" if next(rows, None) is None else ", more are left unread"


def read_pairs(
    paths: Sequence[Path],
    *,
    fields: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    refuse: Callable[[str], None] = lambda reason: None,
) -> Iterator[Pair]:
    """The pairs of these files.

    Args:
        paths: Parquet or JSONL.
        fields: The two fields of a pair; found by name if none are given.
        weights: Share of a source's rows that is kept, chosen at random; all by default.
        refuse: Called with the reason for each row that is no pair, or loses negatives.

    Raises:
        SourceError: a file cannot be read, or its rows have no pair of fields.
    """
    random = np.random.default_rng(0)
    weights = weights or {}
    names: Sequence[str] = fields
    for row in read_rows(paths):
        names = names or _pair_fields(row)
        source = str(row.get("source", ""))
        keep = random.random() < weights.get(source, 1.0)
        a, b = (row.get(name) for name in names[:2])
        if not isinstance(a, str) or not isinstance(b, str):
            refuse("a text without a partner")
        elif not a.strip() or not b.strip():
            refuse("an empty text")
        elif keep:
            yield Pair(a, b, source, _topic(row), _negatives(row, refuse))


def _pair_fields(row: Mapping[str, Any]) -> tuple[str, str]:
    for names in _FIELD_PAIRS:
        if all(name in row for name in names):
            return names
    raise SourceError(
        f"no pair of texts in a row with the fields {', '.join(sorted(row))}",
        hint="name them: --fields FIRST,SECOND",
    )


def _topic(row: Mapping[str, Any]) -> int:
    topic = row.get("topic")
    return topic if isinstance(topic, int) and topic >= 0 else -1


def _negatives(row: Mapping[str, Any], refuse: Callable[[str], None]) -> tuple[str, ...]:
    found = next((row[name] for name in _NEGATIVES if row.get(name)), ())
    several = found if isinstance(found, (list, tuple)) else (found,)
    kept = tuple(text for text in several if isinstance(text, str) and text.strip())
    if len(kept) < len(several):
        refuse("a negative that is no text, or empty")
    return kept


def cut_text(text: str, *, limit: int) -> str:
    """The text's beginning, at most `limit` characters, ended at a word."""
    if len(text) <= limit:
        return text
    text = text.lstrip()  # blanks alone would have no word to end at
    return text if len(text) <= limit else text[:limit].rsplit(None, 1)[0]


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """Token ids of n texts in one flat array.

    Attributes:
        tokens: uint16 `[total]`; a vocabulary has at most 65,536 pieces.
        offsets: int64 `[n + 1]`; text i is `tokens[offsets[i]:offsets[i + 1]]`.
        shortened: Texts that lost tokens to the limit.
    """

    tokens: npt.NDArray[np.uint16]
    offsets: npt.NDArray[np.int64]
    shortened: int = 0

    @classmethod
    def build(cls, texts: Sequence[str], tokenizer: Any, *, max_tokens: int) -> TokenTable:
        """Tokenise texts, each cut to `max_tokens`.

        Raises:
            ConfigError: the vocabulary does not fit 16 bits.
        """
        if tokenizer.get_piece_size() > 1 << 16:
            raise ConfigError(f"vocab_size={tokenizer.get_piece_size()} is over 65536")
        whole = tokenizer.encode(list(texts), num_threads=2)
        rows = [row[:max_tokens] for row in whole]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        flat = np.fromiter((token for row in rows for token in row), np.uint16, int(offsets[-1]))
        return cls(flat, offsets, sum(len(row) > max_tokens for row in whole))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> npt.NDArray[np.uint16]:
        """The ids of one text."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens in each text, int64 `[n]`."""
        return np.diff(self.offsets)

    def counts(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """How often each piece occurs, int64 `[vocab_size]`."""
        return np.bincount(self.tokens, minlength=vocab_size)

    def document_counts(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """In how many texts each piece occurs, int64 `[vocab_size]`."""
        rows = np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)
        unique = np.unique(rows * vocab_size + self.tokens)
        return np.bincount(unique % vocab_size, minlength=vocab_size)

    def idf(self, vocab_size: int) -> npt.NDArray[np.float32]:
        """Inverse document frequency of each piece as BM25 has it, float32 `[vocab_size]`."""
        containing = self.document_counts(vocab_size)
        ratio = (len(self) - containing + 0.5) / (containing + 0.5)
        return np.asarray(np.log1p(ratio), dtype=np.float32)

    def padded(
        self, rows: npt.NDArray[np.int64], *, pad_id: int = 0
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """`input_ids` and `attention_mask`, int64 `[len(rows), longest]`."""
        lengths = self.lengths[rows]
        mask = np.arange(max(int(lengths.max()), 1)) < lengths[:, None]
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = np.concatenate([self[row] for row in rows])
        return ids, mask.astype(np.int64)
