"""mteb's encoder protocol, under mteb itself and sentence-transformers, on a small test set."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb")

from mteb.models import EncoderProtocol

from nexus_vdb.connectors.mteb import MtebModel
from nexus_vdb.errors import ConfigError
from nexus_vdb.pipelines._eval_data import read_test_set
from nexus_vdb.testing import FakeEncoder

ROOT = Path(__file__).parents[2]
TEXTS = ["red apples", "green pears", "blue plums", "apples and pears"]


@pytest.fixture
def evaluators(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("evaluators")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    corpus = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(TEXTS)]
    queries = [{"_id": "q0", "text": "red apples"}, {"_id": "q1", "text": "plums"}]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query\tdocument\tscore\nq0\td0\t1\nq1\td2\t1\n")
    return tmp_path


def test_it_meets_the_protocol() -> None:
    model = MtebModel(FakeEncoder())
    assert isinstance(model, EncoderProtocol)
    meta = model.mteb_model_meta
    assert (meta.embed_dim, meta.revision) == (FakeEncoder().dim, FakeEncoder().fingerprint)


def test_batches_become_rows_at_the_width_asked_for() -> None:
    encoder = FakeEncoder()
    batches = [{"text": TEXTS[:3]}, {"text": TEXTS[3:]}]
    options: dict[str, Any] = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
    found = MtebModel(encoder).encode(batches, **options)
    np.testing.assert_array_equal(found, encoder.encode(TEXTS).vectors)
    width = encoder.cuts[0]
    narrow = MtebModel(encoder, truncate_dim=width).encode(batches, **options)
    assert narrow.shape == (4, width)
    np.testing.assert_allclose(np.linalg.norm(narrow, axis=1), 1, atol=1e-6)
    with pytest.raises(ConfigError, match="precision"):
        MtebModel(encoder).encode(batches, precision="int8", **options)
    with pytest.raises(ConfigError, match="truncate_dim"):
        MtebModel(encoder, truncate_dim=0)


@pytest.mark.filterwarnings("ignore")  # mteb's own
def test_both_evaluators_agree(evaluators: Any, folder: Path) -> None:
    encoder, test = FakeEncoder(), read_test_set(folder)
    queries = encoder.encode(list(test.queries.values())).vectors
    scores = queries @ encoder.encode(TEXTS).vectors.T
    places = [1 + int((row > row[right]).sum()) for row, right in zip(scores, (0, 2), strict=True)]
    expected = float(np.mean([1 / np.log2(1 + place) for place in places]))
    for run in (evaluators.by_mteb, evaluators.by_sentence_transformers):
        found = run(encoder, test)
        assert found["ndcg@10"] == pytest.approx(expected, abs=1e-4)
        assert found["recall@100"] == 1
