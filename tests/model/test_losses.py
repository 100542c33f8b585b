"""Objectives: values on cases that can be worked out by hand, and what descent on them does."""

from __future__ import annotations

import math

import torch

from nexus_vdb.model import losses


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def test_info_nce_of_orthogonal_pairs() -> None:
    eye = torch.eye(4)
    none = torch.zeros(4, 4, dtype=torch.bool)
    found = losses.info_nce(eye, eye, none, temperature=torch.tensor(0.5))
    assert math.isclose(float(found), math.log(math.exp(2) + 3) - 2, rel_tol=1e-5)


def test_duplicates_are_no_negatives() -> None:
    a = torch.eye(4)[[0, 0, 1, 2]]
    twins = torch.zeros(4, 4, dtype=torch.bool)
    twins[0, 1] = twins[1, 0] = True
    temperature = torch.tensor(0.1)
    masked = losses.info_nce(a, a, twins, temperature=temperature)
    plain = losses.info_nce(a, a, torch.zeros_like(twins), temperature=temperature)
    assert float(masked) < 1e-2 < float(plain)


def test_relational_loss_looks_past_the_diagonal() -> None:
    teacher = torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.0]])
    student = teacher.clone().fill_diagonal_(-3.0)
    assert float(losses.relational_loss(student, teacher, temperature=0.1)) < 1e-6
    assert float(losses.relational_loss(1 - teacher, teacher, temperature=0.1)) > 0.5


def test_spectral_loss_finds_the_leading_eigenspace() -> None:
    """Two views of one of 3 clusters: the optimum separates the clusters with 3 coordinates."""
    torch.manual_seed(0)
    coordinates = torch.nn.Parameter(torch.randn(3, 3) * 0.3)
    optimizer = torch.optim.Adam([coordinates], lr=0.05)
    cluster = torch.arange(60) % 3
    for _ in range(400):
        rows = coordinates[cluster]
        loss = losses.spectral_contrastive_loss(rows, rows)
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    gram = coordinates.detach() @ coordinates.detach().T
    assert gram.diagonal().min() > 5 * (gram - torch.diag(gram.diagonal())).abs().max()


def test_hash_loss_prefers_bits_that_rank_as_cosine_does() -> None:
    torch.manual_seed(0)
    texts = unit(64, 16)
    cosine = texts @ texts.T
    projection = torch.nn.Parameter(torch.randn(16, 64) * 0.1)
    optimizer = torch.optim.Adam([projection], lr=0.02)

    def recall() -> float:
        logits = (texts @ projection).detach()
        score = (logits @ logits.sign().T).fill_diagonal_(-1e9)
        wanted = cosine.clone().fill_diagonal_(-1e9).topk(5).indices
        found = score.topk(5).indices
        return float((wanted[:, :, None] == found[:, None, :]).any(-1).float().mean())

    before = recall()
    for _ in range(150):
        logits = texts @ projection
        loss = losses.hash_loss(logits, logits, cosine, temperature=0.1)
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    assert recall() > before + 0.03


def test_a_cut_is_a_unit_prefix() -> None:
    vectors = unit(5, 12)
    torch.testing.assert_close(losses.cut(vectors, 4).norm(dim=-1), torch.ones(5))
    torch.testing.assert_close(losses.cut(vectors, 12), vectors)
