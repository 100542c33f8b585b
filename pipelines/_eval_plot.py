"""What an evaluation found, as a picture. Needs the extra "plots"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nexus_vdb.errors import ConfigError, MissingExtra

try:
    from matplotlib.figure import Figure
except ImportError as _error:
    raise MissingExtra("matplotlib", extra="plots") from _error

__all__ = ["draw"]

_MEASURES = ("ndcg@10", "recall@100", "mrr@10")


def draw(found: dict[str, Any], path: Path, *, title: str) -> None:
    """Write a PNG: quality by dimension and, of a store with a hash, by candidates.

    Args:
        found: As `evaluate` or `evaluate_pairs` gives it.
        path: The file to write.
        title: Stands above.

    Raises:
        ConfigError: the file cannot be written.
    """
    shares = found.get("shares") or []
    figure = Figure(figsize=(10 if shares else 5, 4), layout="constrained")
    panels = figure.subplots(1, 2 if shares else 1, squeeze=False)[0]
    _by_dimension(panels[0], found)
    if shares:
        _by_candidates(panels[1], found["ndcg@10"], shares)
    for panel in panels:
        panel.grid(visible=True, alpha=0.2)
        panel.legend()
    figure.suptitle(title)
    try:
        figure.savefig(path, format="png", dpi=130)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _by_dimension(panel: Any, found: dict[str, Any]) -> None:
    cuts = sorted((int(dim), value) for dim, value in found["cuts"].items())
    dims = [dim for dim, _ in cuts]
    if "spearman" in found:
        panel.plot(dims, [value for _, value in cuts], marker="o", label="Spearman x 100")
    else:
        for name in _MEASURES:
            panel.plot(dims, [scores[name] for _, scores in cuts], marker="o", label=name)
    panel.set(xlabel="dimensions", xticks=dims)


def _by_candidates(panel: Any, exact: float, shares: list[dict[str, Any]]) -> None:
    points = sorted(shares, key=lambda point: float(point["candidates"]))
    depths = [point["candidates"] for point in points]
    for name, label in (("recall_of_exact", "recall of the exact top 10"), ("ndcg@10", "ndcg@10")):
        panel.plot(depths, [point[name] for point in points], marker="o", label=label)
    panel.axhline(exact, ls=":", color="C1", label="ndcg@10, exact")
    panel.set(xlabel="candidates of the hash", xscale="log")
    panel.set_xticks(depths, labels=[f"{depth:,}" for depth in depths])
    panel.minorticks_off()
