"""The hash as it is fitted at export: to rank as the embedding does, whatever it was before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nexus_vdb.model import hash_fit
from nexus_vdb.model.config import NexusConfig
from nexus_vdb.model.hash_fit import FIT_FROM, fit_hash, itq_residual
from nexus_vdb.model.network import NexusModel


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_fit, "_STEPS", 60)


def small(**changes: bool) -> NexusModel:
    torch.manual_seed(0)
    model = NexusModel(
        NexusConfig(
            vocab_size=400, d_model=64, n_layers=1, n_heads=2, d_ff=64, max_seq_len=16, **changes
        )
    )
    with torch.no_grad():
        model.hash_residual.weight.normal_()
    return model.eval()


def texts(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of texts of eight words, some words far more frequent than others."""
    random = torch.Generator().manual_seed(seed)
    words = (398 * torch.rand(count, 8, generator=random) ** 2).long() + 2
    parts = [words[start : start + 512] for start in range(0, count, 512)]
    return [(part, torch.ones_like(part)) for part in parts]


@torch.no_grad()
def recall(model: NexusModel) -> float:
    """Of the ten nearest by cosine, in the best 60 of 2,000 by the hash."""
    outputs = [model(*batch) for batch in texts(2000, seed=1)]
    embedding, logits = (
        torch.cat([getattr(out, name) for out in outputs]) for name in ("embedding", "hash_logits")
    )
    exact = (embedding[:100] @ embedding.T).topk(10).indices
    hashed = (logits[:100] @ logits.sign().T).topk(60).indices
    return float((exact[:, :, None] == hashed[:, None, :]).any(-1).float().mean())


@pytest.mark.parametrize("nsa", [True, False])
def test_a_fitted_hash_finds_more(nsa: bool) -> None:
    model = small(nsa=nsa)
    before = recall(model)
    fit_hash(model, texts(FIT_FROM))
    assert recall(model) > before + 0.05


def test_every_bit_is_set_in_half_of_the_texts() -> None:
    for model in (small(), small(hash_residual=False)):
        for count in (FIT_FROM, 500):
            fit_hash(model, texts(count))
            with torch.no_grad():
                logits = torch.cat([model(*batch).hash_logits for batch in texts(count)])
            assert ((logits > 0).float().mean(0) - 0.5).abs().max() < 0.02


def test_few_texts_leave_directions_as_they_were_trained() -> None:
    model = small()
    before = model.hash_residual.weight.clone()
    fit_hash(model, texts(FIT_FROM - 1))
    assert torch.equal(model.hash_residual.weight, before)
    fit_hash(model, texts(FIT_FROM))
    assert not torch.equal(model.hash_residual.weight, before)


def test_the_residual_makes_up_for_what_spectral_coordinates_say() -> None:
    random = torch.Generator().manual_seed(0)
    embedding = torch.nn.functional.normalize(torch.randn(3000, 96, generator=random), dim=-1)
    spectral = torch.tanh(embedding @ torch.randn(96, 64, generator=random))
    weight, bias = itq_residual(embedding, spectral)
    alone, _ = itq_residual(embedding, torch.zeros(3000, 64))
    logits = spectral + embedding @ weight.T + bias
    wanted = embedding @ alone.T
    found = torch.corrcoef(torch.stack([logits[:, 0], wanted[:, 0]]))[0, 1]
    assert found > 0.95
    assert torch.allclose(logits.std(0), torch.ones(64), atol=0.1)
