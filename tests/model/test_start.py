"""What a run can begin with: a bundle's weights, parts fitted anew, parts left as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nexus_vdb.encoder import find_bundle
from nexus_vdb.errors import ConfigError, ModelError
from nexus_vdb.model.bundle import load_checkpoint
from nexus_vdb.model.config import load_config
from nexus_vdb.model.data import TokenTable, read_pairs
from nexus_vdb.model.export import run_onnx
from nexus_vdb.model.fusion_fit import fit_fusion
from nexus_vdb.model.initialize import start_bag, without_idle_blocks
from nexus_vdb.model.lexicon import Lexicon, term_of_piece
from nexus_vdb.model.network import EntityBag, NexusModel
from nexus_vdb.model.precision import has_fast_bf16
from nexus_vdb.model.tokenizer import load_tokenizer
from nexus_vdb.model.unpack import load_bundle
from nexus_vdb.pipelines.export import ExportSettings, run_export
from nexus_vdb.pipelines.train import TrainSettings, run_training
from nexus_vdb.settings import make_settings


@pytest.fixture
def values(
    pairs_file: Path, tokenizer_file: Path, network_file: Path, tmp_path: Path
) -> dict[str, Any]:
    return {
        "network": network_file,
        "tokenizer": tokenizer_file,
        "pairs": [str(pairs_file)],
        "out": tmp_path / "run",
        "holdout": 40,
        "schedule": {"steps": 12, "batch": 32, "warmup": 2},
    }


def with_bigrams(network_file: Path, count: int) -> Path:
    """The same network with vectors for so many pairs of pieces."""
    path = network_file.with_name(f"bigrams-{count}.json")
    path.write_text(json.dumps({**json.loads(network_file.read_text()), "bigrams": count}))
    return path


def exported(values: dict[str, Any], precision: str) -> Path:
    bundle = Path(values["out"]).with_name("bundle")
    settings = {
        "checkpoint": values["out"],
        "tokenizer": values["tokenizer"],
        "out": bundle,
        "sample": values["pairs"],
        "precision": precision,
    }
    run_export(make_settings(ExportSettings, settings))
    return bundle


@pytest.mark.parametrize(
    ("precision", "largest"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 0.03)]
)
@pytest.mark.parametrize("bigrams", [0, 200])
def test_a_bundle_gives_its_weights_back(
    values: dict[str, Any], network_file: Path, precision: str, largest: float, bigrams: int
) -> None:
    values["network"] = with_bigrams(network_file, bigrams)
    values["stemmer"] = "english" if bigrams else ""
    trained, _ = load_checkpoint(run_training(make_settings(TrainSettings, values)))
    found = load_bundle(exported(values, precision)).state_dict()
    for name, wanted in trained.state_dict().items():
        if name != "hash_residual.bias":  # the export moves it to the medians
            scale = float(wanted.abs().max()) or 1.0
            assert float((found[name] - wanted).abs().max()) <= largest * scale, name


def test_a_network_grows_by_vectors_for_pairs_of_pieces(
    values: dict[str, Any], network_file: Path, tmp_path: Path
) -> None:
    run_training(make_settings(TrainSettings, values))
    small = exported(values, "float32").rename(tmp_path / "small")
    wider = {"network": with_bigrams(network_file, 200), "out": tmp_path / "grown", "seed": 3}
    values |= wider | {"start": str(small)}
    values["schedule"] |= {"steps": 0}
    model, _ = load_checkpoint(run_training(make_settings(TrainSettings, values)))
    assert model.bigrams is not None
    assert model.bigrams.started
    ids = torch.randint(5, 600, (4, 9))
    with torch.no_grad():
        before, after = (one(ids, torch.ones_like(ids)) for one in (load_bundle(small), model))
    assert torch.allclose(before.embedding, after.embedding, atol=1e-6)
    grown = exported(values, "float32")
    values["out"] = tmp_path / "mean"
    with pytest.raises(ConfigError, match="other pairs of pieces with vectors"):
        run_training(make_settings(TrainSettings, values | {"start": [str(small), str(grown)]}))
    values["schedule"] |= {"steps": 6, "optimizer": "muon"}
    values |= {"start": [str(grown), str(grown)], "out": tmp_path / "on"}
    trained, _ = load_checkpoint(run_training(make_settings(TrainSettings, values)))
    assert trained.bigrams is not None
    assert torch.equal(trained.bigrams.keys, model.bigrams.keys)
    assert trained.bigrams.table.weight.any()


def test_the_shipped_bundle_can_be_trained_on() -> None:
    assert load_bundle(find_bundle()).config.d_model == 256


def test_the_shipped_bundle_is_alike_on_every_processor() -> None:
    bundle = find_bundle()
    text = (bundle / "card.md").read_text(encoding="utf-8").split("\n\n")
    tokenizer = load_tokenizer(bundle / "tokenizer.model")
    ids, mask = TokenTable.build(text, tokenizer, max_tokens=200).padded(np.arange(len(text)))
    quick, plain = (run_onnx(bundle / "model.onnx", ids, mask, plain=x) for x in (False, True))
    cosines = (quick["embedding"] * plain["embedding"]).sum(1)
    assert cosines.min() > 0.999  # not so where eight-bit weights overflow


def test_a_bundle_names_no_path_of_the_machine(values: dict[str, Any]) -> None:
    run_training(make_settings(TrainSettings, values))
    for bundle in (find_bundle(), exported(values, "int8")):
        octets = (bundle / "model.onnx").read_bytes()
        assert b"site-packages" not in octets
        assert b"network.py" not in octets


def test_a_run_starts_from_a_bundle_and_leaves_frozen_parts(
    values: dict[str, Any], tmp_path: Path
) -> None:
    run_training(make_settings(TrainSettings, values))
    bundle = exported(values, "float32")
    values |= {"start": str(bundle), "out": tmp_path / "second", "freeze": ["blocks", "tokens"]}
    trained, _ = load_checkpoint(run_training(make_settings(TrainSettings, values)))
    before, after = load_bundle(bundle).state_dict(), trained.state_dict()
    for name, value in after.items():
        kept = name.startswith(("blocks.", "tokens.")) or name == "bag.terms"
        assert torch.equal(value, before[name]) == kept or not value.any(), name


def test_a_run_starts_from_the_mean_of_bundles(values: dict[str, Any], tmp_path: Path) -> None:
    """In the same places: what is the run's own, and what each bundle has learned."""
    weights, bundles = [], []
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        own = values | {"out": tmp_path / name / "run", "seed": seed}
        run_training(make_settings(TrainSettings, own))
        bundles.append(str(exported(own, "float32")))
        weights.append(load_bundle(Path(bundles[-1])).state_dict())
    values |= {"start": bundles, "refit": True, "out": tmp_path / "mean"}
    values["schedule"] |= {"steps": 0}
    found = load_checkpoint(run_training(make_settings(TrainSettings, values)))[0].state_dict()
    for name in ("tokens.weight", "semantic.weight", "blocks.0.down.weight"):
        first, second = (one[name] for one in weights)
        assert not torch.equal(first, second)
        assert torch.allclose(found[name], (first + second) / 2, atol=1e-6)


def test_a_teacher_is_turned_to_where_a_trained_network_has_the_same_texts(
    values: dict[str, Any], teacher_folder: Path, tmp_path: Path
) -> None:
    values |= {"teachers": [str(teacher_folder)]}
    values["schedule"] |= {"steps": 60, "learning_rate": 1e-2}
    run_training(make_settings(TrainSettings, values))

    def vector_losses(folder: Path) -> list[float]:
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [row["vector"] for row in rows if "vector" in row]

    learned = vector_losses(values["out"])
    other = tmp_path / "others.jsonl"
    other.write_text("\n".join(Path(values["pairs"][0]).read_text().splitlines()[300:]))
    values |= {"start": str(exported(values, "float32")), "out": tmp_path / "second"}
    values |= {"pairs": [str(other)], "fields": []}
    values["schedule"] |= {"steps": 1}
    run_training(make_settings(TrainSettings, values))
    assert vector_losses(values["out"])[0] < (learned[0] + learned[-1]) / 2


def test_a_start_that_does_not_fit_is_refused(
    values: dict[str, Any], network_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no model 'nowhere'"):
        run_training(make_settings(TrainSettings, values | {"start": "nowhere"}))
    with pytest.raises(ConfigError, match="another network"):
        run_training(make_settings(TrainSettings, values | {"start": "nexus-emb-edge"}))
    with pytest.raises(ConfigError, match="freeze='block'; valid: tokens, "):
        run_training(make_settings(TrainSettings, values | {"freeze": ["block"]}))
    (tmp_path / "config.json").write_text(network_file.read_text())
    with pytest.raises(ModelError, match=r"cannot read the weights.*model\.onnx"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("weight", [0.6, 1.5])
def test_no_steps_keep_what_was_fitted(values: dict[str, Any], weight: float) -> None:
    values |= {"schedule": {"steps": 0, "batch": 32}, "entity_weight": weight}
    model, step = load_checkpoint(run_training(make_settings(TrainSettings, values)))
    assert step == 0
    share = torch.sigmoid(model.gates.bias.detach())
    assert float(share[-1] / share[0]) == pytest.approx(weight, abs=1e-3)


def test_a_refit_makes_a_wider_bag_of_signs(
    values: dict[str, Any], network_file: Path, tmp_path: Path
) -> None:
    run_training(make_settings(TrainSettings, values))
    bundle = exported(values, "float32")
    wider = tmp_path / "wider.json"
    wider.write_text(json.dumps({**json.loads(network_file.read_text()), "bag_dim": 320}))
    values |= {"start": str(bundle), "out": tmp_path / "second", "network": wider}
    values |= {"schedule": {"steps": 0, "batch": 32}, "freeze": ["bag.table"]}
    with pytest.raises(ConfigError, match="another network"):
        run_training(make_settings(TrainSettings, values))
    trained, _ = load_checkpoint(
        run_training(make_settings(TrainSettings, values | {"refit": True}))
    )
    before, after = load_bundle(bundle).state_dict(), trained.state_dict()
    assert torch.equal(before["tokens.weight"], after["tokens.weight"])
    assert after["bag.table.weight"].shape == (600, 320)
    assert (after["bag.table.weight"].abs() == 1).all()
    small = load_bundle(exported(values, "int8"))
    assert torch.equal(small.state_dict()["bag.table.weight"], after["bag.table.weight"])


def test_pieces_of_one_stem_are_one_term() -> None:
    tokenizer = load_tokenizer(find_bundle() / "tokenizer.model")
    terms = term_of_piece(tokenizer, "english")
    drug, drugs, other = (
        terms[tokenizer.piece_to_id(piece)] for piece in ("▁drug", "▁drugs", "▁blood")
    )
    assert drug == drugs != other
    assert sorted(set(terms.tolist())) == list(range(terms.max() + 1))
    assert (term_of_piece(tokenizer, "") == np.arange(tokenizer.get_piece_size())).all()
    with pytest.raises(ConfigError, match="Invalid stemmer='klingon'; valid: "):
        term_of_piece(tokenizer, "klingon")


def test_a_bag_of_signs_ranks_much_as_the_exact_bags(
    pairs_file: Path, tokenizer_file: Path, network_file: Path
) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    texts = [pair.b for pair in read_pairs([pairs_file])]
    table = TokenTable.build(texts, tokenizer, max_tokens=48)
    lexicon = Lexicon.build(table, np.arange(600))
    bag = EntityBag(load_config(network_file))
    start_bag(bag, lexicon)
    ids, mask = map(torch.from_numpy, table.padded(np.arange(200)))
    with torch.no_grad():
        vectors = bag(ids, mask.float()).numpy()
    exact = lexicon.cosines([table[row] for row in range(200)])
    error = vectors @ vectors.T - exact
    # Of a random projection to d dimensions: about (1 - cosine²) / d.
    assert np.square(error).mean() < 0.6 * (1 - exact**2).mean() / vectors.shape[1]
    assert np.abs(error.mean()) < 0.01


def test_terms_that_weigh_alike_are_orthogonal(network_file: Path) -> None:
    idf = np.linspace(1, 9, 600, dtype=np.float32)
    bag = EntityBag(load_config(network_file))
    start_bag(bag, Lexicon(np.arange(600), idf))
    dim = bag.table.embedding_dim
    order = torch.from_numpy(np.argsort(-np.exp(-idf) * idf**2))
    assert dim & (dim - 1) == 0
    for rows in torch.split(order, dim):
        signs = bag.table.weight[rows].detach()
        assert torch.equal(signs @ signs.T, dim * torch.eye(len(rows)))


def test_forms_of_a_word_count_as_one_term(network_file: Path) -> None:
    lexicon = Lexicon(np.repeat(np.arange(300), 2), np.linspace(1, 9, 300, dtype=np.float32))
    bag = EntityBag(load_config(network_file))
    start_bag(bag, lexicon)
    with torch.no_grad():
        one, other, less = bag(
            torch.tensor([[6, 7, 6, 200], [6, 6, 6, 201], [6, 0, 0, 200]]),
            torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1]]),
        )
    assert torch.allclose(one, other)
    assert not torch.allclose(one, less)


def test_what_most_names_share_comes_last_in_the_fused_vector(network_file: Path) -> None:
    config = load_config(network_file)
    model = NexusModel(config)
    ids = torch.randint(5, 600, (400, 9), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 7  # in every text
    fit_fusion(model, [(ids, torch.ones_like(ids))])
    fuse = model.fuse.weight.detach()
    assert torch.allclose(fuse @ fuse.T, torch.eye(len(fuse)), atol=1e-4)
    with torch.no_grad():
        concat = model.heads(ids, torch.ones_like(ids).float())[4]
    names = slice(config.semantic_dim, config.semantic_dim + config.bag_dim)
    shared = torch.zeros(concat.shape[1])
    shared[names] = torch.linalg.svd(concat[:, names])[2][0]
    share = (fuse @ shared).square()
    last = config.bag_dim * 3 // 16
    assert share[:-last].sum() < 1e-3
    assert share[-last:].sum() > 0.999


def test_blocks_are_left_out_only_while_they_add_nothing(network_file: Path) -> None:
    torch.manual_seed(0)
    model = NexusModel(load_config(network_file)).eval()
    ids = torch.randint(5, 600, (4, 9))
    with torch.no_grad():
        whole = model(ids, torch.ones_like(ids)).embedding
        with without_idle_blocks(model):
            assert len(model.blocks) == 0
            assert torch.equal(model(ids, torch.ones_like(ids)).embedding, whole)
        assert len(model.blocks) == 1
        model.get_parameter("blocks.0.down.weight")[3, 5] = 1e-3
        with without_idle_blocks(model):
            assert len(model.blocks) == 1


def test_bf16_is_for_processors_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not has_fast_bf16("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert has_fast_bf16("cpu")
    assert has_fast_bf16("cuda")
