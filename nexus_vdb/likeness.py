"""Cosines between sets of vectors, of numpy and torch alike; neither library is imported here."""

from __future__ import annotations

from typing import Any

__all__ = ["cosine_matrix", "paired_cosines"]

_LEAST = 1e-12  # a vector of zeros is as far from all as can be, and no division by zero


def cosine_matrix(first: Any, second: Any) -> Any:
    """Cosine of each row of `[n, d]` with each of `[m, d]`: `[n, m]`; one row may come as `[d]`.

    Arrays give an array and tensors a tensor; a mixture is not understood.
    """
    return _unit(first) @ _unit(second).T


def paired_cosines(first: Any, second: Any) -> Any:
    """Cosine of each row of `[n, d]` with the same row of the other: `[n]`."""
    return (_unit(first) * _unit(second)).sum(-1)


def _unit(rows: Any) -> Any:
    rows = rows[None] if rows.ndim == 1 else rows
    squares = (rows * rows).sum(-1)[:, None]
    return rows / (squares**0.5).clip(_LEAST)
