"""Answers that show themselves: hits with how they were found, and what a store says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import Any, Literal

from nexus_vdb.types import Hit, SearchPlan, StoreInfo

__all__ = ["Hits", "Overview"]

_ROWS, _LINE, _TEXT, _METADATA = 20, 100, 160, 80  # rows and characters that are shown


class Hits(list[Hit]):
    """The answer to one query, best first: a list, and how it was found.

    Args:
        hits: The hits.
        plan: How the store was searched.
        expected_recall: Share of the exact answer that such a search finds on average; None where
            that was never measured.
        timings_ms: Milliseconds by step; of the whole batch for a query that was one of several.
    """

    def __init__(
        self,
        hits: Iterable[Hit],
        *,
        plan: SearchPlan,
        expected_recall: float | None,
        timings_ms: Mapping[str, float],
    ) -> None:
        super().__init__(hits)
        self.plan = plan
        self.expected_recall = expected_recall
        self.timings_ms = dict(timings_ms)

    @property
    def candidates(self) -> int | Literal["exact"]:
        """How many records the hash let through, "exact" if all were compared."""
        return "exact" if self.plan.candidates in ("exact", "auto") else int(self.plan.candidates)

    def __repr__(self) -> str:
        lines = [f"{self._count()}, {self._how()}"]
        lines += [
            _cut(f"{hit.score:7.3f}  {hit.document_id}  {hit.text}", _LINE) for hit in self[:_ROWS]
        ]
        return "\n".join(lines + ["    …"] * (len(self) > _ROWS))

    def _repr_html_(self) -> str:
        rows = [
            (f"{hit.score:.3f}", hit.document_id, _cut(hit.text, _TEXT), _metadata(hit))
            for hit in self[:_ROWS]
        ]
        more = f" ({_ROWS} shown)" if len(self) > _ROWS else ""
        caption = f"{self._count()}{more}, {self._how()}"
        return _table(rows, head=("score", "document", "text", "metadata"), caption=caption)

    def _count(self) -> str:
        return "1 hit" if len(self) == 1 else f"{len(self)} hits"

    def _how(self) -> str:
        parts = ["exact"]
        if self.candidates != "exact":
            parts = [f"{self.candidates:,} candidates"]
            if self.expected_recall is not None:
                parts.append(f"expected recall {self.expected_recall:.3f}")
        if self.timings_ms:
            parts.append(f"{sum(self.timings_ms.values()):.1f} ms")
        return ", ".join(parts)


class Overview(StoreInfo):
    """`StoreInfo` that shows itself in a notebook."""

    __slots__ = ()

    @classmethod
    def of(cls, info: StoreInfo) -> Overview:
        """The same facts."""
        return cls(**{field.name: getattr(info, field.name) for field in fields(info)})

    def __repr__(self) -> str:
        return "\n".join(f"{name:<12}{_cut(value, _LINE)}" for name, value in self._facts())

    def _repr_html_(self) -> str:
        return _table(self._facts(), head=(), caption="")

    def _facts(self) -> list[tuple[str, str]]:
        schema = self.schema
        facts: dict[str, Any] = {
            "url": self.url,
            "count": f"{self.count:,}",
            "model": schema.model or "ready-made vectors",
            "vectors": f"{schema.dim} dimensions, cuts {', '.join(map(str, schema.cuts))}",
            "hash": self.meta.get("hash", "none"),
            **self.details,
        }
        return [(name.replace("_", " "), _text(value)) for name, value in facts.items()]


def _text(value: Any) -> str:
    number = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if number else str(value)


def _metadata(hit: Hit) -> str:
    shown = json.dumps(hit.metadata, ensure_ascii=False, default=str) if hit.metadata else ""
    return _cut(shown, _METADATA)


def _cut(text: str, length: int) -> str:
    line = " ".join(text.split()) if len(text) < 10 * length else text[: 10 * length]
    return line if len(line) <= length else line[: length - 1] + "…"


def _table(rows: Sequence[Sequence[str]], *, head: Sequence[str], caption: str) -> str:
    parts = ["<table>"]
    if caption:
        parts.append(f"<caption>{escape(caption)}</caption>")
    if head:
        parts.append(_row(head, "th"))
    parts += [_row(row, "td") for row in rows]
    return "\n".join([*parts, "</table>"])


def _row(cells: Sequence[str], tag: str) -> str:
    cell = f'<{tag} style="text-align:left">'
    return f"<tr>{''.join(f'{cell}{escape(text)}</{tag}>' for text in cells)}</tr>"
