"""The encoder of the shipped bundle: how it shares texts out over threads."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nexus_vdb.encoder import OnnxEncoder, load_encoder

TEXTS = [" ".join(["rain falls on the hills"] * (1 + number % 40)) for number in range(90)] + [""]


@pytest.fixture(scope="module")
def encoder() -> OnnxEncoder:
    return load_encoder(threads=3)


class Watched:
    """A session that notes the shape of each run, and by which thread it was asked."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.shapes: list[tuple[int, int]] = []
        self.threads: set[int] = set()

    def run(self, outputs: Sequence[str], feed: dict[str, Any]) -> Any:
        self.shapes.append(feed["input_ids"].shape)
        self.threads.add(threading.get_ident())
        return self.session.run(outputs, feed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def test_threads_change_no_vector(encoder: OnnxEncoder) -> None:
    alone, together = load_encoder(threads=1).encode(TEXTS), encoder.encode(TEXTS)
    assert (alone.vectors * together.vectors).sum(1).min() > 0.9999
    assert np.mean(alone.codes == together.codes) > 0.9  # a logit near zero may change its sign


def test_order_is_kept(encoder: OnnxEncoder) -> None:
    found = encoder.encode(TEXTS).vectors
    expected = np.concatenate([encoder.encode([text]).vectors for text in TEXTS])
    assert (found * expected).sum(1).min() > 0.9999


def test_another_process_takes_the_threads_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    sent = [pickle.dumps(load_encoder(threads=threads)) for threads in (None, 3)]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [pickle.loads(one)._threads for one in sent] == [2, 3]


@pytest.mark.parametrize("count", [1, 4, 91])
def test_each_run_is_small_and_all_threads_have_some(
    encoder: OnnxEncoder, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(encoder._session)
    monkeypatch.setattr(encoder, "_session", watched)
    encoder.encode(TEXTS[:count])
    assert sum(rows for rows, _ in watched.shapes) == count
    assert all(rows == 1 or rows * length <= 512 for rows, length in watched.shapes)
    assert len(watched.shapes) >= min(count, 3)
    if count == 1:
        assert watched.threads == {threading.get_ident()}
