"""Teachers in int8: near to themselves, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from nexus_vdb.errors import ModelError
from nexus_vdb.model import teacher_int8
from nexus_vdb.model.teachers import Teacher

_WORDS = ["oven", "flour", "reef", "comet", "hedge", "sailor"]
TEXTS = [" ".join(_WORDS[:count]) for count in range(1, 7)]


@pytest.fixture(scope="module")
def small_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained BERT of two layers, as a sentence-transformers folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
        )
    ).save_pretrained(folder)
    modules = [Transformer(str(folder), max_seq_length=16), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "whole"))
    return folder / "whole"


def test_in_int8_a_teacher_is_near_to_itself(small_transformer: Path) -> None:
    plain, int8 = Teacher(small_transformer), Teacher(small_transformer, int8=True)
    expected, found = plain.encode(TEXTS), int8.encode(TEXTS)
    assert found.dtype == np.float16 and found.shape == (len(TEXTS), 32)
    assert (expected.astype(np.float32) * found).sum(1).min() > 0.98
    assert not np.array_equal(expected, found)


def test_products_of_outliers_stay_in_float(small_transformer: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "outliers"
    shutil.copytree(small_transformer, folder)
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if name.endswith("intermediate.dense.bias"):
            value[0] = 3000.0  # beside which int8 takes the other 63 for nothing
        elif value.shape == (32, 64):
            value *= 30
            value[:, 0] = 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    expected, found = (Teacher(folder, int8=int8).encode(TEXTS) for int8 in (False, True))
    assert (expected.astype(np.float32) * found).sum(1).min() > 0.97


def test_another_model_in_int8_is_refused(
    small_transformer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_int8, "_LEAST", 1.01)
    with pytest.raises(ModelError, match="another model") as caught:
        Teacher(small_transformer, int8=True)
    assert "teacher_int8" in str(caught.value.hint)


def test_their_caches_are_apart(small_transformer: Path, tmp_path: Path) -> None:
    for int8 in (False, True):
        Teacher(small_transformer, int8=int8).encode_cached(TEXTS, tmp_path)
    assert len(list(tmp_path.glob("whole-*"))) == 2
    assert len(list(tmp_path.glob("whole-int8-*"))) == 1


def test_a_teacher_without_a_transformer_has_no_int8(teacher_folder: Path) -> None:
    with pytest.raises(ModelError, match="cannot be exported") as caught:
        Teacher(teacher_folder, int8=True)
    assert "teacher_int8" in str(caught.value.hint)
