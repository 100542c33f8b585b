"""Which pieces are one term, and how much a term says: what the entity head learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nexus_vdb.errors import ConfigError, MissingExtra
from nexus_vdb.model.data import TokenTable

__all__ = ["K1", "Lexicon", "term_of_piece"]

K1 = 1.2
"""Saturation as in BM25: a count tf weighs tf (k1 + 1) / (tf + k1)."""

_WORD = "▁"  # begins a piece that begins a word


def term_of_piece(tokenizer: Any, language: str) -> npt.NDArray[np.int64]:
    """The term of each piece, int64 `[V]`, numbered from 0.

    Pieces that begin a word share a term if their Snowball stems are equal ("drug", "drugs"); each
    of the others is a term of its own. Measured on SciFact, exact bags of stems find an nDCG@10 of
    .666, those of pieces .655; squeezed to 256 random dimensions, .476 and .415.

    Args:
        tokenizer: A SentencePiece processor.
        language: A Snowball algorithm such as "english"; empty for none.

    Raises:
        ConfigError: Snowball has no such language.
        MissingExtra: PyStemmer is not installed.
    """
    pieces = [tokenizer.id_to_piece(index) for index in range(tokenizer.get_piece_size())]
    if not language:
        return np.arange(len(pieces))
    try:
        import Stemmer
    except ImportError as error:
        raise MissingExtra("PyStemmer", extra="train") from error
    try:
        stemmer = Stemmer.Stemmer(language)
    except KeyError:
        valid = ", ".join(Stemmer.algorithms())
        raise ConfigError(f"Invalid stemmer={language!r}; valid: {valid}") from None
    numbers: dict[str, int] = {}
    terms = [
        _WORD + stemmer.stemWord(piece[1:].lower()) if piece.startswith(_WORD) else piece
        for piece in pieces
    ]
    return np.array([numbers.setdefault(term, len(numbers)) for term in terms], np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Lexicon:
    """Terms and their weights.

    Attributes:
        terms: int64 `[V]`, the term of each piece.
        idf: float32 `[terms]`.
    """

    terms: npt.NDArray[np.int64]
    idf: npt.NDArray[np.float32]

    @classmethod
    def build(cls, table: TokenTable, terms: npt.NDArray[np.int64]) -> Lexicon:
        """Weigh terms by how few of the texts in `table` have them."""
        mapped = replace(table, tokens=terms[table.tokens].astype(np.uint16))
        return cls(terms, mapped.idf(int(terms.max()) + 1))

    def cosines(self, texts: Sequence[npt.NDArray[np.uint16]]) -> npt.NDArray[np.float32]:
        """Cosines `[n, n]` of the texts' exact bags: saturated term counts times IDF."""
        rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        found, columns = np.unique(self.terms[np.concatenate(texts)], return_inverse=True)
        counts = np.zeros((len(texts), len(found)), np.float32)
        np.add.at(counts, (rows, columns), 1)
        bags = counts * (K1 + 1) / (counts + K1) * self.idf[found]
        bags /= np.linalg.norm(bags, axis=1, keepdims=True) + 1e-9
        return np.asarray(bags @ bags.T)
