"""The comparison of `benchmarks/model.py`: figures of a set, settings of a variant, the page."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexus_vdb.errors import ConfigError
from nexus_vdb.hashing import pack
from nexus_vdb.model.config import NexusConfig
from nexus_vdb.types import Floats, QueryBatch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("model")


class Axes:
    """Texts are numbers: on a half circle by size, with a hash that knows the sign of 64 - size."""

    cuts = (2,)

    def encode_heads(self, texts: Sequence[str]) -> tuple[QueryBatch, dict[str, Floats]]:
        sizes = np.array([float(text) for text in texts], np.float32)
        vectors = np.stack([np.cos(sizes / 40), np.sin(sizes / 40)], axis=1)
        logits = np.repeat(np.where(sizes < 64, 1, -1)[:, None], 64, axis=1).astype(np.float32)
        return QueryBatch(vectors, logits, pack(logits)), {"semantic": -vectors}


def write_set(folder: Path) -> None:
    """100 documents of a number each; 1.4 asks for 1 and 2, and document 5 asks for 6."""
    (folder / "qrels").mkdir()
    rows = [{"_id": f"d{number}", "text": str(number)} for number in range(100)]
    asked = [{"_id": "q", "text": "1.4"}, {"_id": "d5", "text": "5"}]
    for name, some in (("corpus", rows), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)), encoding="utf-8")
    judged = "q\td\ts\nq\td2\t1\nd5\td6\t1\nd5\td5\t1\n"
    (folder / "qrels" / "test.tsv").write_text(judged, encoding="utf-8")


def test_figures_of_a_set(ablation: Any, tmp_path: Path) -> None:
    write_set(tmp_path)
    found = ablation.measure(Axes(), tmp_path)
    # q: 1, 2 …, so the second of the list is right; d5: without itself 4 and 6, equally near.
    second = 1 / math.log2(3)
    ideal = 1 + second
    both = {(second + place / ideal) / 2 for place in (1, second)}
    assert min(abs(found["2"] - one) for one in both) < 1e-6
    assert found["semantic"] < 0.01 + found["2"]
    # All ten are among the 64 that the hash likes, of which 1, 3 and 5 in 100 are let through.
    assert 0 <= found["hash_0.01"] <= found["hash_0.05"] <= 0.5
    assert set(found) == {"2", "semantic", "hash_0.01", "hash_0.025", "hash_0.05"}


def test_each_variant_differs_in_its_part_alone(ablation: Any, tmp_path: Path) -> None:
    made = {
        name: ablation.settings_of(
            name,
            tmp_path / name,
            config=ROOT / "configs" / "distill.toml",
            network=ROOT / "benchmarks" / "small.json",
            given={"tokenizer": Path("t"), "schedule": {"steps": 7, "batch": None}},
        )
        for name in ablation.VARIANTS
    }

    def difference(name: str) -> dict[str, Any]:
        full, other = made["full"].model_dump(), made[name].model_dump()
        networks = [
            NexusConfig.model_validate_json(one["network"].read_text()).model_dump()
            for one in (full, other)
        ]
        whole = [{key: one[key] for key in ("teachers", "fit_fusion")} for one in (full, other)]
        tables = [(full[key], other[key]) for key in ("schedule", "losses", "text")]
        flat = [tuple(whole), tuple(networks), *tables]
        return {key: two[key] for one, two in flat for key in one if one[key] != two[key]}

    assert made["full"].schedule.steps == 7
    assert (made["full"].freeze, made["no-entity-bag"].freeze) == (["bag.table"], [])
    assert {name: difference(name) for name in made} == {
        "full": {},
        "other-order": {"seed": 1},
        "no-entity-bag": {"entity_bag": False},
        "no-nsa": {"nsa": False, "spectral": 0.0},
        "no-hash-residual": {"hash_residual": False},
        "no-matryoshka": {"matryoshka": False},
        "no-last-fit": {"fit_fusion": False},
        "no-distillation": {"vector": 0.0, "relational": 0.0, "fused_relational": 0.0},
        "no-teacher": {"teachers": []},
        "bigrams": {"bigrams": 48_000},
        "muon": {"optimizer": "muon"},
    }


def test_a_misspelt_setting_is_named(ablation: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stepz"):
        ablation.settings_of(
            "full",
            tmp_path / "full",
            config=ROOT / "configs" / "distill.toml",
            network=ROOT / "benchmarks" / "small.json",
            given={"schedule": {"stepz": 7}},
        )


def test_the_page(ablation: Any) -> None:
    keys = ("768", "512", "256", "semantic", "entity", "hash_0.01", "hash_0.025", "hash_0.05")

    def one(value: float, day: int) -> dict[str, Any]:
        figures = dict.fromkeys(keys, value)
        return {
            "parameters": 29_189_010,
            "sets": {"here": figures},
            "vector_loss": None if day == 2 else 0.34567,
            "date": f"2026-01-0{day}",
        }

    results = {
        "how": {
            "given": {"schedule": {"steps": 20}},
            "sets": ["here"],
            "layers": 2,
            "width": 64,
            "max_pairs": 500,
            "batch": 128,
            "tokens": 96,
        },
        "variants": {"no-nsa": one(0.4, 2), "full": one(0.5, 1)},
    }
    labels = {name: variant.label for name, variant in ablation.VARIANTS.items()}
    page = ablation.page(results, labels)
    assert "2026-01-01 to 2026-01-02. Held equal" in page
    assert "A network of 2 layers of 64 trained" in page
    assert "500 pairs at most" in page
    assert "20 steps of 128 pairs" in page
    rows = [line for line in page.splitlines() if line.startswith("| the full model |")]
    assert rows[0].startswith("| the full model | 29.2 M | 0.500 | 0.500 |  | 0.500 |  |")
    assert "| without NSA | 29.2 M | 0.400 | 0.400 | -0.100 | 0.400 | -0.100 |" in page
    assert rows[0].endswith("| 0.3457 |")


def test_a_cache_is_linked_and_left_as_it_is(ablation: Any, tmp_path: Path) -> None:
    (tmp_path / "cache" / "teacher-1").mkdir(parents=True)
    folder = ablation.linked(tmp_path / "cache", tmp_path / "own")
    (folder / "teacher-2").mkdir()
    assert ablation.linked(tmp_path / "cache", folder) == folder
    assert (folder / "teacher-1").resolve() == tmp_path / "cache" / "teacher-1"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["teacher-1"]
