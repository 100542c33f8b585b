from __future__ import annotations

import numpy as np

from nexus_vdb.hashing import pack
from nexus_vdb.interfaces import Encoder
from nexus_vdb.testing import FakeEncoder


def test_it_is_an_encoder_with_unit_rows_and_matching_codes() -> None:
    encoder: Encoder = FakeEncoder()
    batch = encoder.encode(["one two", "", "..."])
    assert batch.vectors.shape == (3, encoder.dim) == (3, 768)
    np.testing.assert_allclose(np.linalg.norm(batch.vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(batch.codes, pack(batch.hash_logits))
    assert encoder.cuts == (256, 512, 768)
    assert encoder.count_tokens(["one two", ""]) == [2, 0]
    assert len(encoder.encode([])) == 0
    assert FakeEncoder(96).cuts == (96,)


def test_a_text_has_the_same_row_in_every_batch_and_encoder() -> None:
    texts = ["blue whales sing", "the sky is blue", "interest rates rise"]
    together = FakeEncoder().encode(texts)
    for row, text in enumerate(texts):
        alone = FakeEncoder().encode([text])
        np.testing.assert_array_equal(alone.vectors[0], together.vectors[row])
        np.testing.assert_array_equal(alone.hash_logits[0], together.hash_logits[row])


def test_texts_that_share_words_are_near_at_every_cut() -> None:
    near, far, query = (
        FakeEncoder()
        .encode(["How blue whales sing.", "interest rates rise again", "whales sing"])
        .vectors
    )
    for cut in (256, 512, 768):
        assert near[:cut] @ query[:cut] > 2 * abs(far[:cut] @ query[:cut])


def test_another_seed_is_another_model() -> None:
    first, second = FakeEncoder(), FakeEncoder(seed=1)
    assert first.fingerprint != second.fingerprint
    assert abs(first.encode(["whales"]).vectors[0] @ second.encode(["whales"]).vectors[0]) < 0.2
