from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_vdb.errors import ConfigError
from nexus_vdb.hashing import (
    ItqHash,
    asymmetric_scores,
    from_hex,
    hamming,
    pack,
    signs,
    to_hex,
)
from nexus_vdb.testing.store import sample_records

_codes = st.lists(st.integers(0, 2**64 - 1), max_size=20)


def test_bit_i_is_the_sign_of_logit_i_least_significant_first() -> None:
    logits = np.full((4, 64), -1.0, dtype=np.float32)
    logits[0, 0] = 1
    logits[1, 63] = 0.001
    logits[2, [1, 8, 62]] = 5
    logits[3] = 0
    assert pack(logits).tolist() == [1, 2**63, 2 + 2**8 + 2**62, 0]
    assert pack(logits).dtype == np.uint64
    assert pack(np.zeros((0, 64), dtype=np.float32)).tolist() == []


@given(_codes)
def test_signs_and_hex_are_inverses(values: list[int]) -> None:
    codes = np.array(values, dtype=np.uint64)
    assert signs(codes).shape == (len(values), 64)
    assert set(np.unique(signs(codes))) <= {-1.0, 1.0}
    np.testing.assert_array_equal(pack(signs(codes)), codes)
    np.testing.assert_array_equal(from_hex(to_hex(codes)), codes)


def test_hex_has_sixteen_lowercase_digits() -> None:
    assert to_hex(np.array([0, 255, 2**64 - 1], dtype=np.uint64)) == [
        "0000000000000000",
        "00000000000000ff",
        "ffffffffffffffff",
    ]


@given(st.integers(0, 2**64 - 1), _codes)
def test_hamming_counts_differing_bits(query: int, values: list[int]) -> None:
    found = hamming(np.array([query], np.uint64), np.array(values, np.uint64))
    assert found.tolist() == [[bin(query ^ value).count("1") for value in values]]


def test_asymmetric_score_is_the_signed_sum() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((3, 64)).astype(np.float32)
    codes = random.integers(0, 2**64, size=5, dtype=np.uint64)
    expected = [
        [
            sum(float(logit) * (1 if int(code) >> bit & 1 else -1) for bit, logit in enumerate(row))
            for code in codes
        ]
        for row in logits
    ]
    np.testing.assert_allclose(asymmetric_scores(logits, codes), expected, atol=1e-4)


def test_asymmetric_score_of_bits_ranks_as_hamming_does() -> None:
    codes = np.random.default_rng(0).integers(0, 2**64, size=50, dtype=np.uint64)
    scores = asymmetric_scores(signs(codes[:4]), codes)
    np.testing.assert_array_equal(scores, 64 - 2 * hamming(codes[:4], codes).astype(np.float32))


def test_itq_beats_random_planes_and_survives_json() -> None:
    vectors = sample_records(1500, dim=128).vectors
    queries, documents = vectors[:100], vectors[100:]
    itq = ItqHash.fit(documents)
    again = ItqHash.from_json(json.loads(json.dumps(itq.to_json())))
    np.testing.assert_array_equal(again.logits(queries), itq.logits(queries))
    listed = {"mean": itq.mean.tolist(), "projection": itq.projection.tolist()}
    np.testing.assert_array_equal(ItqHash.from_json(listed).projection, itq.projection)
    planes = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)
    best = np.argsort(-(queries @ documents.T), axis=1)[:, :10]

    def recall(query_logits: np.ndarray, document_logits: np.ndarray) -> float:
        scores = asymmetric_scores(query_logits, pack(document_logits))
        found = np.argsort(-scores, axis=1)[:, :100]
        return float(np.mean([np.isin(a, b).mean() for a, b in zip(best, found, strict=True)]))

    fitted = recall(itq.logits(queries), itq.logits(documents))
    assert fitted > recall(queries @ planes, documents @ planes)
    assert fitted > 0.8


def test_itq_rotation_keeps_lengths() -> None:
    itq = ItqHash.fit(sample_records(500, dim=96).vectors, iterations=5)
    np.testing.assert_allclose(itq.projection.T @ itq.projection, np.eye(64), atol=1e-4)


@pytest.mark.parametrize("shape", [(63, 96), (500, 32)])
def test_itq_needs_enough_to_fit(shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="64"):
        ItqHash.fit(np.ones(shape, dtype=np.float32))
