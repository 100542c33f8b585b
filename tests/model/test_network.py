"""The network: masks, positions, attention kernels, sizes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from nexus_vdb.errors import ConfigError
from nexus_vdb.model import network
from nexus_vdb.model.config import NexusConfig, load_config
from nexus_vdb.model.network import (
    EntityBag,
    NexusModel,
    count_parameters,
    plain_attention,
    rotate,
)

CONFIGS = Path(__file__).parents[2] / "configs"


def tiny(*, rope: bool = False, flash: bool = False) -> NexusConfig:
    return NexusConfig(
        vocab_size=300,
        d_model=32,
        n_layers=2,
        n_heads=4,
        d_ff=48,
        dropout=0.0,
        max_seq_len=64,
        rope=rope,
        flash_attention=flash,
    )


def lively(config: NexusConfig) -> NexusModel:
    """A network whose blocks do something: they start at zero."""
    torch.manual_seed(0)
    model = NexusModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.abs().sum() == 0:
                parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize("rope", [False, True])
def test_padding_changes_nothing(rope: bool) -> None:
    model = lively(tiny(rope=rope))
    ids = torch.randint(2, 300, (3, 9))
    padded = torch.cat([ids, torch.zeros(3, 5, dtype=torch.int64)], dim=1)
    mask = torch.cat([torch.ones(3, 9), torch.zeros(3, 5)], dim=1).long()
    with torch.no_grad():
        short, long = model(ids, torch.ones_like(ids)), model(padded, mask)
    for field in fields(short):
        torch.testing.assert_close(
            getattr(short, field.name), getattr(long, field.name), atol=2e-5, rtol=1e-4
        )


def test_outputs_have_the_shapes_of_the_design() -> None:
    output = lively(tiny())(torch.randint(2, 300, (2, 7)), torch.ones(2, 7).long())
    shapes = {field.name: tuple(getattr(output, field.name).shape) for field in fields(output)}
    assert shapes == {
        "embedding": (2, 768),
        "semantic": (2, 512),
        "entity": (2, 256),
        "spectral": (2, 64),
        "hash_logits": (2, 64),
        "topic_logits": (2, 16),
    }
    for name in ("embedding", "semantic", "entity"):
        torch.testing.assert_close(getattr(output, name).norm(dim=-1), torch.ones(2))


def test_flash_attention_agrees_with_the_math_kernel() -> None:
    math, flash = lively(tiny()), lively(tiny(flash=True))
    ids, mask = torch.randint(2, 300, (4, 20)), torch.ones(4, 20).long()
    mask[:, 15:] = 0
    with torch.no_grad():
        torch.testing.assert_close(
            math(ids, mask).embedding, flash(ids, mask).embedding, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(("training", "length"), [(True, 40), (True, 41), (False, 9)])
def test_short_texts_are_trained_without_the_flash_kernel(
    training: bool, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradients are slow on a CPU, itself it is not."""
    plain: list[int] = []

    def spy(q: torch.Tensor, *rest: torch.Tensor, attn_mask: torch.Tensor) -> torch.Tensor:
        plain.append(q.shape[2])
        return plain_attention(q, *rest, attn_mask=attn_mask)

    monkeypatch.setattr(network, "_SHORT", 40)
    monkeypatch.setattr(network, "plain_attention", spy)
    model = lively(tiny(flash=True))
    ids = torch.randint(2, 300, (2, length))
    with torch.set_grad_enabled(training):
        model(ids, torch.ones_like(ids))
    expected = model.config.n_layers if training and length == 40 else 0
    assert plain == [length] * expected


@pytest.mark.parametrize("rope", [False, True])
def test_flash_attention_has_the_gradients_of_the_math_kernel(
    rope: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_SHORT", 0)
    gradients = []
    ids, mask = torch.randint(2, 300, (4, 20)), torch.ones(4, 20).long()
    mask[1:, 15:] = 0
    for flash in (False, True):
        model = lively(tiny(rope=rope, flash=flash))
        torch.autograd.backward([model(ids, mask).embedding[:, :100].sum()])
        gradients.append(
            {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        )
    math, fast = gradients
    assert math.keys() == fast.keys()
    assert float(math["blocks.0.attention.q.weight"].abs().max()) > 1e-3
    for name, value in math.items():
        torch.testing.assert_close(fast[name], value, atol=1e-4, rtol=1e-3)


def test_rotary_positions_do_not_see_where_a_text_stands() -> None:
    """Behind padding the same text has other places, and the same distances."""
    ids = torch.randint(2, 300, (2, 9))
    shifted = torch.cat([torch.zeros(2, 6, dtype=torch.int64), ids], dim=1)
    mask = (shifted > 0).long()
    likeness = []
    for rope in (True, False):
        model = lively(tiny(rope=rope))
        with torch.no_grad():
            here = model(ids, torch.ones_like(ids)).semantic
            there = model(shifted, mask).semantic
        likeness.append((here * there).sum(-1))
    torch.testing.assert_close(likeness[0], torch.ones(2), atol=1e-5, rtol=0)
    assert float(likeness[1].max()) < 0.999  # learned positions do see it


def test_rotary_products_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)
    queries = rotate(q.expand(1, 1, 30, 8), 10_000.0)[0, 0]
    keys = rotate(k.expand(1, 1, 30, 8), 10_000.0)[0, 0]
    products = queries @ keys.T
    for offset in (0, 3, -7):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)


OFF = ({"entity_bag": False}, {"nsa": False}, {"hash_residual": False})


@pytest.mark.parametrize("off", OFF, ids=lambda off: next(iter(off)))
def test_a_part_can_be_left_out(off: dict[str, bool]) -> None:
    whole = lively(tiny())
    model = lively(tiny().model_copy(update=off))
    assert count_parameters(model) < count_parameters(whole)
    ids, mask = torch.randint(2, 300, (3, 9)), torch.ones(3, 9).long()
    output = model(ids, mask)
    for field in fields(output):
        assert getattr(output, field.name).shape == getattr(whole(ids, mask), field.name).shape
    residual = model.hash_residual(output.embedding)
    if "entity_bag" in off:
        context = model.entity(model.pool(ids, mask.float())[0])
        context = context[:, : model.config.entity_dim]
        torch.testing.assert_close(
            output.entity, torch.nn.functional.normalize(context, dim=-1), atol=1e-5, rtol=1e-4
        )
    if "nsa" in off:
        assert not output.spectral.any()
        torch.testing.assert_close(output.hash_logits, residual)
    if "hash_residual" in off:
        bias = model.hash_residual.bias
        torch.testing.assert_close(output.hash_logits, output.spectral + bias)


def test_something_has_to_be_left_to_hash_with(tmp_path: Path) -> None:
    path = tmp_path / "network.json"
    path.write_text('{"nsa": false, "hash_residual": false}')
    with pytest.raises(ConfigError, match="nothing is left to hash with"):
        load_config(path)


def test_word_order_is_seen() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    for rope in (False, True):
        model = lively(tiny(rope=rope))
        with torch.no_grad():
            forth = model(ids, torch.ones_like(ids)).semantic
            back = model(ids.flip(1), torch.ones_like(ids)).semantic
        assert float((forth * back).sum()) < 0.999


def test_the_bag_saturates_counts_as_bm25_does() -> None:
    bag = EntityBag(tiny())
    with torch.no_grad():
        bag.table.weight[5] = 1  # orthogonal to the other: there is nothing to take back
        bag.table.weight[9] = torch.tensor([1.0, -1]).repeat(bag.table.embedding_dim // 2)
        found = bag(torch.tensor([[5, 5, 5, 9]]), torch.ones(1, 4))
        k1 = 1.2
        wanted = 3 * (k1 + 1) / (3 + k1) * bag.table.weight[5] + bag.table.weight[9]
    torch.testing.assert_close(found[0], wanted / wanted.norm())


def test_what_terms_add_to_one_another_is_taken_back_by_half() -> None:
    bag = EntityBag(tiny())
    dim = bag.table.embedding_dim
    with torch.no_grad():
        bag.table.weight[5] = 1
        bag.table.weight[9] = 1
        bag.table.weight[9, : dim // 4] = -1  # half of the one is in the other
        found = bag(torch.tensor([[5, 9, 5]]), torch.ones(1, 3))
        twice, once = 2 * 2.2 / 3.2, 1.0
        twice, once = twice - 0.5 * once / 2, once - 0.5 * twice / 2
        wanted = twice * bag.table.weight[5] + once * bag.table.weight[9]
    torch.testing.assert_close(found[0], wanted / wanted.norm())


def test_at_the_start_the_network_is_a_static_bag() -> None:
    torch.manual_seed(0)
    model = NexusModel(tiny()).eval()
    ids = torch.randint(2, 300, (1, 6))
    with torch.no_grad():
        states = model.states(ids, torch.ones(1, 6))
    torch.testing.assert_close(states, model.tokens(ids))


@pytest.mark.parametrize(
    ("name", "parameters"), [("nexus_emb_240m", 241_822_994), ("nexus_emb_edge", 54_092_946)]
)
def test_published_settings_have_the_size_they_are_named_for(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = NexusModel(load_config(CONFIGS / f"{name}.json"))
    assert count_parameters(model) == parameters


@pytest.mark.parametrize(
    ("text", "key"),
    [('{"d_modle": 8}', "d_modle"), ('{"d_model": 30}', "heads"), ("{", "not JSON")],
)
def test_a_wrong_network_file_names_the_key(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "network.json").write_text(text)
    with pytest.raises(ConfigError, match=key):
        load_config(tmp_path / "network.json")
