"""The page of `benchmarks/model.py`."""

from __future__ import annotations

from typing import Any

from model_eval import SHARES

__all__ = ["page"]

INTRODUCTION = """\
# What each part of the model is worth

A network of {layers} layers of {width} trained in full, without one part at a time, and with
one more. Made by

    python benchmarks/model.py run WORK --tokenizer TOKENIZER {arguments}
    python benchmarks/model.py report WORK

{dates}. Held equal: the tokenizer, {pairs}, what of them is held out, their order,
{steps:,} steps of {batch} pairs, learning rate and its course, the seed of the random start, the
losses but for those of the part left out. The shipped model has 4 layers of 256, and was trained
for 25,704 steps of 128 in all. "Another order" is the full model once more and shows what
chance alone changes.

A document is one vector, of its first {tokens} tokens, and is searched exactly; the query itself is
left out. Hash recall is the share of the exact top ten (768 dimensions) that stands in the best
1, 2.5 and 5 % of the documents by the model's asymmetric hash, the mean over the sets. The change
is to the full model. The last column is the loss of the teacher's vectors, mean of the last hundred
steps.
"""


def page(results: dict[str, Any], labels: dict[str, str]) -> str:
    """What was held equal, then the tables.

    Args:
        results: As `benchmarks/model.py run` keeps them.
        labels: Of the variants, in their order.
    """
    variants = {name: results["variants"][name] for name in labels if name in results["variants"]}
    how = results["how"]
    given, sets = how["given"], how["sets"]
    dates = sorted(one["date"] for one in variants.values())
    parts = [
        INTRODUCTION.format(
            arguments=f"--steps {given['schedule']['steps']} --max-pairs {how['max_pairs']} "
            + " ".join(f"--set EVAL/{name}" for name in sets),
            dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
            pairs=f"{how['max_pairs']:,} pairs at most" if how["max_pairs"] else "the pairs",
            steps=given["schedule"]["steps"],
            **{key: how[key] for key in ("layers", "width", "batch", "tokens")},
        ).rstrip(),
        _main_table(variants, labels, sets),
        "## By width, head and test set\n\nnDCG@10.",
        *(f"### {name}\n\n{_set_table(variants, labels, name)}" for name in sets),
    ]
    return "\n\n".join(parts) + "\n"


def _main_table(variants: dict[str, Any], labels: dict[str, str], sets: list[str]) -> str:
    hashes = [f"hash_{share:g}" for share in SHARES]
    head = ["", "parameters", *(f"nDCG@10 {name}" for name in sets), "mean", "change"]
    head += ["mean at 256", "change", *(f"hash recall {100 * share:g} %" for share in SHARES)]
    head += ["loss of vectors"]
    rows = []
    for name, found in variants.items():
        cells = [labels[name], f"{found['parameters'] / 1e6:.1f} M"]
        cells += [f"{found['sets'][one]['768']:.3f}" for one in sets]
        for width in ("768", "256"):
            mean = _mean(found, sets, width)
            full = _mean(variants["full"], sets, width) if "full" in variants else mean
            cells += [f"{mean:.3f}", "" if name == "full" else f"{mean - full:+.3f}"]
        cells += [f"{_mean(found, sets, key):.3f}" for key in hashes]
        loss = found.get("vector_loss")  # there is none without a teacher
        cells.append("" if loss is None else f"{loss:.4f}")
        rows.append(cells)
    return _table(head, rows)


def _set_table(variants: dict[str, Any], labels: dict[str, str], name: str) -> str:
    keys = ["768", "512", "256", "semantic", "entity", *(f"hash_{share:g}" for share in SHARES)]
    head = ["", *keys[:5], *(f"hash recall {100 * share:g} %" for share in SHARES)]
    rows = [
        [labels[one], *(f"{found['sets'][name][key]:.3f}" for key in keys)]
        for one, found in variants.items()
    ]
    return _table(head, rows)


def _mean(found: dict[str, Any], sets: list[str], key: str) -> float:
    return float(sum(found["sets"][name][key] for name in sets) / len(sets))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
