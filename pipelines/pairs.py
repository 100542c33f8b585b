"""The pairs job: documents → pairs by their titles, names, sentences, and what they speak of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from nexus_vdb.errors import SourceError
from nexus_vdb.model.cloze import cloze_pairs
from nexus_vdb.model.data import cut_text, expand, read_rows, reservoir
from nexus_vdb.model.names import name_pairs
from nexus_vdb.model.questions import question_pairs
from nexus_vdb.pipelines._train_inputs import Bar, Update, no_bar
from nexus_vdb.settings import Settings

__all__ = ["Made", "PairsSettings", "run_pairs"]

_COLUMNS = ("a", "b", "source")
_TOLD_EVERY = 1000  # texts


class PairsSettings(Settings):
    """What pairs are made of, and how many; the keys of `configs/pairs.toml`."""

    texts: list[str]
    out: Path = Path("runs/pairs.parquet")
    text_field: str = "text"
    title_field: str = "title"
    names_field: str = ""
    sentences: int = Field(2, ge=0)
    questions: int = Field(0, ge=0)
    characters: int = Field(1000, ge=100)
    max_pairs: int = Field(200_000, ge=1)
    seed: int = 0


@dataclass(slots=True)
class Made:
    """What came of the texts.

    Attributes:
        texts: Rows read.
        titles: Pairs of a title and its text.
        names: Pairs of two names of a thing, or of a name and the text.
        sentences: Pairs of a sentence and what stands around it.
        questions: Pairs of a question about what a text names and the same in other words.
        without: Texts that gave no pair.
        written: Pairs in the file: all, or a sample of `max_pairs`.
    """

    texts: int = 0
    titles: int = 0
    names: int = 0
    sentences: int = 0
    questions: int = 0
    without: int = 0
    written: int = 0

    @property
    def pairs(self) -> int:
        """Pairs made, before a sample is drawn."""
        return self.titles + self.names + self.sentences + self.questions


def run_pairs(settings: PairsSettings, *, bar: Bar = no_bar) -> Made:
    """Write `settings.out`, rows of a, b and source in random order.

    Raises:
        SourceError: the texts cannot be read, have no such field, or give no pairs.
    """
    settings.out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is told at once
    maker = _Maker(settings)
    with bar("pairs") as update:
        pairs = reservoir(maker.pairs(update), settings.max_pairs, seed=settings.seed)
    if not pairs:
        raise SourceError(
            f"{maker.made.texts:,} texts gave no pairs",
            hint="a text needs a title, names, or two sentences at least, or --questions",
        )
    order = np.random.default_rng(settings.seed).permutation(len(pairs))
    columns = zip(*(pairs[row] for row in order), strict=True)
    table = pa.table([pa.array(column, pa.string()) for column in columns], names=_COLUMNS)
    partial = settings.out.with_name(settings.out.name + ".partial")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(settings.out)
    maker.made.written = len(pairs)
    return maker.made


class _Maker:
    def __init__(self, settings: PairsSettings) -> None:
        self.made = Made()
        self._settings = settings
        self._random = np.random.default_rng(settings.seed)

    def pairs(self, update: Update) -> Iterator[tuple[str, str, str]]:
        """All pairs, text by text."""
        for row in read_rows(expand(self._settings.texts)):
            found = self._of(row)
            self.made.texts += 1
            self.made.without += not found
            if self.made.texts % _TOLD_EVERY == 0:
                update(self.made.texts, None, f"{self.made.pairs:,} pairs")
            source = str(row.get("source", ""))
            yield from ((a, b, source) for a, b in found)

    def _of(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        text, title = self._text(row), row.get(self._settings.title_field)
        titled = isinstance(title, str) and title.strip() and text.strip()
        limit, count = self._settings.characters, self._settings.sentences
        pairs = [(str(title), cut_text(text, limit=limit))] if titled else []
        self.made.titles += len(pairs)
        named = name_pairs(_texts(row.get(self._settings.names_field)), text, self._random)
        self.made.names += len(named)
        cloze = cloze_pairs(text, self._random, count=count, characters=limit)
        self.made.sentences += len(cloze)
        asked = question_pairs(text, self._random, count=self._settings.questions)
        self.made.questions += len(asked)
        return pairs + named + cloze + asked

    def _text(self, row: Mapping[str, Any]) -> str:
        name = self._settings.text_field
        if name not in row and not self.made.texts:
            raise SourceError(
                f"no field {name!r} in a row with the fields {', '.join(sorted(row))}",
                hint="name the one that holds the text: --text-field NAME",
            )
        text = row.get(name)
        return text if isinstance(text, str) else ""


def _texts(value: Any) -> list[str]:
    """The texts of a list; none where it is something else."""
    listed = value if isinstance(value, list) else []
    return [one for one in listed if isinstance(one, str)]
