"""The NEXUS-EMB network: ids in, one fused vector and 64 hash logits out.

    ids ─ token table ─┬─ N × (RMSNorm, attention, RMSNorm, SwiGLU) ─ topic-aware pooling ─┐ pooled
                       │                          ┌─ semantic head (512) ──────────────────┤
    ids ─ entity bag ──┼─ entity head (256) ──────┤ gates                                  │
                       │                          └─ concat ─ fuse ─ unit vector (768) ─┐   │
                       └─ neural spectral anchoring (64) ───────┘                       │   │
                                            └──── + residual of the fused vector ── hash logits

Choices:
- Pre-norm, RMSNorm (Zhang & Sennrich 2019), SwiGLU (Shazeer 2020), no biases in the blocks.
- Output projections of the blocks start at zero, so that step 0 is the static bag of token vectors.
- With `bigrams`, frequent pairs of pieces add vectors of their own to those of their second piece.
- Learned positions, or rotary ones (Su et al. 2021) with `rope`.
- Padding is masked in attention, in both poolings and in the term counts.
- `entity_bag`, `nsa` and `hash_residual` leave a part out, to measure what it is worth.
- Only operations that ONNX exports with dynamic batch and length, in forms that ONNX Runtime fuses:
  norms divide by a square root, attention is written out, and no product is cut into parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn

from nexus_vdb.model.bigrams import Bigrams
from nexus_vdb.model.config import NexusConfig
from nexus_vdb.model.tokenizer import PAD_ID

__all__ = ["NexusModel", "NexusOutput", "count_parameters"]


# Longest the spectral coordinates get beside the gated heads: few and coarse, they would blur them.
_SPECTRAL_SHARE = 0.3
# Of what a text's terms add to one another in the bag; a whole step overshoots in long texts.
_TAKEN_BACK = 0.5
# Positions up to which plain attention trains faster on a CPU than the fused kernel's gradients do.
_SHORT = 128


@dataclass
class NexusOutput:
    """What the network makes of B texts; all but the logits are unit rows."""

    embedding: Tensor  # [B, 768] fused; every Matryoshka prefix is a vector once renormalised
    semantic: Tensor  # [B, 512]
    entity: Tensor  # [B, 256]
    spectral: Tensor  # [B, 64] in (-1, 1), not unit
    hash_logits: Tensor  # [B, 64]
    topic_logits: Tensor  # [B, 16]


class RMSNorm(nn.Module):
    """x / rms(x) · gain, computed in float32 under autocast."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape `[..., dim]`, kept."""
        x = x.float()
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary positions on `[B, H, T, D]`: pairs (i, i + D/2) turn by position · theta^(-2i/D)."""
    length, dim = x.shape[-2], x.shape[-1]
    frequency = theta ** (-torch.arange(0, dim, 2, device=x.device).float() / dim)
    angle = torch.arange(length, device=x.device).float()[:, None] * frequency  # [T, D/2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor) -> Tensor:
    """softmax(q · kᵀ / √D + mask) · v of `[B, H, T, D]`: the reference of the fused kernels."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2) + attn_mask
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


class Attention(nn.Module):
    """Bidirectional multi-head attention."""

    def __init__(self, config: NexusConfig) -> None:
        super().__init__()
        self.config = config
        self.q, self.k, self.v, self.out = (
            nn.Linear(config.d_model, config.d_model, bias=False) for _ in range(4)
        )
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`x` [B, T, d]; `bias` [B, 1, 1, T] is 0 on text and very negative on padding."""
        batch, length, width = x.shape
        heads = self.config.n_heads
        q, k, v = (
            linear(x).view(batch, length, heads, width // heads).transpose(1, 2)  # [B, H, T, D]
            for linear in (self.q, self.k, self.v)
        )
        if self.config.rope:
            q, k = rotate(q, self.config.rope_theta), rotate(k, self.config.rope_theta)
        attend = F.scaled_dot_product_attention if self._fused(x) else plain_attention
        mixed = attend(q, k, v, attn_mask=bias.to(q.dtype))
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out

    def _fused(self, x: Tensor) -> bool:
        slow = x.device.type == "cpu" and torch.is_grad_enabled() and x.shape[1] <= _SHORT
        return self.config.flash_attention and not slow and not torch.compiler.is_exporting()


class Block(nn.Module):
    """Attention and SwiGLU, each behind a norm and around a residual."""

    def __init__(self, config: NexusConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model)
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`x` [B, T, d] → [B, T, d]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), bias))
        normed = self.mlp_norm(x)
        mixed: Tensor = self.dropout(self.down(F.silu(self.gate(normed)) * self.up(normed)))
        return x + mixed


class TopicPooling(nn.Module):
    """Weighted mean of the states: a weight per piece, times attention by the text's topics.

    The piece weights start at smooth inverse frequency (Arora et al. 2017), the topic queries at
    zero, so that the first step pools as SIF does.
    """

    def __init__(self, config: NexusConfig) -> None:
        super().__init__()
        self.log_weight = nn.Embedding(config.vocab_size, 1)
        self.topics = nn.Linear(config.d_model, config.n_topics)
        self.queries = nn.Parameter(torch.zeros(config.n_topics, config.d_model))
        self.norm = RMSNorm(config.d_model)
        nn.init.zeros_(self.log_weight.weight)

    def forward(self, x: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States `[B, T, d]`, ids, mask `[B, T]` → pooled `[B, d]`, topic logits `[B, topics]`."""
        x = x.float()
        weight = self.log_weight(ids).squeeze(-1).exp() * mask  # [B, T]
        mean = (weight[..., None] * x).sum(1) / (weight.sum(1, keepdim=True) + 1e-9)
        topic_logits = self.topics(self.norm(mean))
        query = topic_logits.softmax(-1).to(self.queries.dtype) @ self.queries  # [B, d]
        score = (x * query[:, None, :]).sum(-1) / math.sqrt(x.shape[-1])
        weight = weight * score.clamp(-8, 8).exp()
        pooled = (weight[..., None] * x).sum(1) / (weight.sum(1, keepdim=True) + 1e-9)
        return self.norm(pooled), topic_logits


class EntityBag(nn.Module):
    """A bag of terms straight from the ids, so that a name the blocks never saw still matches.

    Each distinct term adds its vector times a learned weight (from IDF) times the saturated term
    count of BM25, tf · (k1 + 1) / (tf + k1). In few dimensions the vectors of a text's other terms
    then add to what is found of a term again, or take from it: half of that is taken back, by one
    step of gradient descent on the squared difference.
    """

    terms: Tensor  # int32 [vocab_size]; the row of table and weights that a piece has

    def __init__(self, config: NexusConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.bag_dim)
        self.log_weight = nn.Embedding(config.vocab_size, 1)
        self.log_k1 = nn.Parameter(torch.tensor(math.log(1.2)))
        self.register_buffer("terms", torch.arange(config.vocab_size, dtype=torch.int32))
        nn.init.zeros_(self.log_weight.weight)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids and mask `[B, T]` → unit rows `[B, bag_dim]`."""
        terms = self.terms[ids].long()
        same = (terms[:, :, None] == terms[:, None, :]).float() * mask[:, None, :]
        # [B, T]; each of the tf positions of a term carries 1/tf of its share
        count = same.sum(-1)
        k1 = self.log_k1.exp()
        share = (k1 + 1) / (count + k1) * self.log_weight(terms).squeeze(-1).exp() * mask
        vectors = self.table(terms)
        found = (vectors @ (share[:, None] @ vectors).mT).squeeze(-1) * (1 / vectors.shape[-1])
        share = share + _TAKEN_BACK * mask * (share - found / count.clamp(min=1))
        return F.normalize((share[:, None] @ vectors).squeeze(1), dim=-1, eps=1e-6)


class NexusModel(nn.Module):
    """The whole network."""

    def __init__(self, config: NexusConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        heads_dim = config.semantic_dim + config.bag_dim
        self.tokens = nn.Embedding(config.vocab_size, d, padding_idx=PAD_ID)
        self.bigrams = Bigrams(config.bigrams, d) if config.bigrams else None
        self.positions = None if config.rope else nn.Embedding(config.max_seq_len, d)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.pooling = TopicPooling(config)
        self.semantic = nn.Linear(d, config.semantic_dim, bias=False)
        self.bag = EntityBag(config) if config.entity_bag else None
        self.entity = nn.Linear(d, config.bag_dim, bias=False)
        self.entity_share = nn.Parameter(torch.tensor(0.1)) if config.entity_bag else None
        self.gates = nn.Linear(d, heads_dim)
        if config.nsa:
            self.anchor_in = nn.Linear(d, config.anchor_dim, bias=False)
            self.anchors = nn.Linear(config.anchor_dim, config.hash_bits)
        anchored_dim = config.hash_bits if config.nsa else 0
        self.fuse = nn.Linear(heads_dim + anchored_dim, config.embedding_dim, bias=False)
        self.hash_residual = nn.Linear(config.embedding_dim, config.hash_bits)
        self._initialize()
        if not config.hash_residual:  # its bias stays: the thresholds of the bits
            nn.init.zeros_(self.hash_residual.weight).requires_grad_(False)

    def _initialize(self) -> None:
        if self.positions is not None:
            nn.init.zeros_(self.positions.weight)
        for linear in (self.semantic, self.entity, self.fuse):
            nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(self.gates.weight)

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token states `[B, T, d]` of ids and mask `[B, T]`."""
        x: Tensor = self.tokens(ids)
        if self.bigrams is not None:
            x = x + self.bigrams(ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = self.dropout(x)
        bias = (1 - mask[:, None, None, :]) * -1e4
        for block in self.blocks:
            x = block(x, bias)
        return x

    def pool(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled states `[B, d]` and topic logits `[B, topics]`."""
        pooled: tuple[Tensor, Tensor] = self.pooling(self.states(ids, mask), ids, mask)
        return pooled

    def heads(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Semantic, all of entity, spectral, topic logits, and the gated concat of the first three.

        Without spectral coordinates these are zeros, and the concat ends before them.
        """
        pooled, topic_logits = self.pool(ids, mask)
        semantic = F.normalize(self.semantic(pooled).float(), dim=-1)
        # Unit rows both: unbounded, the pooled part grows ten times as long and drowns the names.
        context = F.normalize(self.entity(pooled).float(), dim=-1)
        entity = context
        if self.bag is not None and self.entity_share is not None:
            entity = F.normalize(self.bag(ids, mask) + self.entity_share * context, dim=-1)
        gated = torch.cat([semantic, entity], -1) * torch.sigmoid(self.gates(pooled).float())
        if not self.config.nsa:  # zeros that have a gradient, as everything else here
            return semantic, entity, gated[:, : self.config.hash_bits] * 0, topic_logits, gated
        spectral = torch.tanh(self.anchors(self.anchor_in(pooled)).float())
        anchored = spectral * (_SPECTRAL_SHARE / math.sqrt(spectral.shape[-1]))
        concat = torch.cat([gated, anchored], -1)
        return semantic, entity, spectral, topic_logits, concat

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> NexusOutput:
        """Ids and mask int64 `[B, T]`, T ≤ max_seq_len."""
        mask = attention_mask.float()
        semantic, entity, spectral, topic_logits, concat = self.heads(input_ids, mask)
        embedding = F.normalize(self.fuse(concat).float(), dim=-1)
        # The hash follows the embedding, never the other way round: no gradient goes back.
        hash_logits = spectral + self.hash_residual(embedding.detach()).float()
        # Every prefix of random projections is one: the head's own vector is cut as the fused one.
        entity = F.normalize(entity[:, : self.config.entity_dim], dim=-1)
        return NexusOutput(embedding, semantic, entity, spectral, hash_logits, topic_logits)


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers in the network."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
