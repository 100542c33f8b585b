"""The shape of a SentenceTransformer, under that library's own evaluator."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from nexus_vdb.connectors.sentence_transformers import SentenceModel
from nexus_vdb.errors import ConfigError
from nexus_vdb.testing import FakeEncoder

TEXTS = ["red apples", "green pears", "a red apple"]


@pytest.fixture
def model() -> SentenceModel:
    return SentenceModel(FakeEncoder())


def test_texts_become_the_encoders_rows(model: SentenceModel) -> None:
    expected = FakeEncoder().encode(TEXTS).vectors
    for encode in (model.encode, model.encode_query, model.encode_document):
        np.testing.assert_array_equal(encode(TEXTS, batch_size=2), expected)
    np.testing.assert_array_equal(model.encode(TEXTS[1]), expected[1])
    rows = model.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(rows, list)
    np.testing.assert_array_equal(rows[2], expected[2])


def test_a_prompt_is_put_before_each_text(model: SentenceModel) -> None:
    expected = model.encode(["query: red apples"])
    np.testing.assert_array_equal(model.encode(["red apples"], prompt="query: "), expected)


def test_narrower_rows_are_unit_rows_as_well(model: SentenceModel) -> None:
    width = model.encoder.cuts[0]
    narrow = SentenceModel(model.encoder, truncate_dim=width)
    assert narrow.get_sentence_embedding_dimension() == width
    rows = narrow.encode(TEXTS)
    assert rows.shape == (3, width)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(model.encode(TEXTS, truncate_dim=width), rows)


def test_likeness_is_the_cosine(model: SentenceModel) -> None:
    rows = model.encode(TEXTS)
    np.testing.assert_allclose(model.similarity(rows, 3 * rows), rows @ rows.T, atol=1e-6)
    pairs = model.similarity_pairwise(rows[:2], rows[1:])
    np.testing.assert_allclose(pairs, [rows[0] @ rows[1], rows[1] @ rows[2]], atol=1e-6)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"truncate_dim": 1000000}, "truncate_dim"),
        ({"precision": "int8"}, "precision"),
        ({"prompt_name": "query"}, "no prompt 'query'"),
    ],
)
def test_what_cannot_be_had_is_refused(
    model: SentenceModel, option: dict[str, int | str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model.encode(TEXTS, **option)  # type: ignore[arg-type]


def test_the_librarys_evaluator_takes_it(model: SentenceModel) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    corpus: dict[str, Any] = dict(zip("abc", TEXTS, strict=True))
    evaluator = InformationRetrievalEvaluator(
        {"q": "red apples", "r": "green pears"},
        corpus,
        {"q": {"a"}, "r": {"c"}},
        mrr_at_k=[3],
        ndcg_at_k=[3],
        accuracy_at_k=[1],
        precision_recall_at_k=[1],
        map_at_k=[3],
        write_csv=False,
    )
    found = evaluator(cast("Any", model))
    scores = model.encode(["green pears"]) @ model.encode(TEXTS).T
    place = int((scores[0] > scores[0, 2]).sum()) + 1
    assert place > 1
    assert found["cosine_accuracy@1"] == 0.5
    assert found["cosine_mrr@3"] == pytest.approx((1 + 1 / place) / 2)
    assert model.model_card_data.metrics["cosine_accuracy@1"] == 0.5
    tensors = model.encode(TEXTS, convert_to_tensor=True)
    np.testing.assert_array_equal(tensors.numpy(), model.encode(TEXTS))
