"""A small corpus, tokenizer and network that the model's tests share."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from nexus_vdb.model.tokenizer import train_tokenizer

_WORDS = {
    "sea": "harbour tide vessel sailor anchor lighthouse wave coral reef captain",
    "sky": "cloud thunder falcon glider rainbow meteor pilot breeze sunrise comet",
    "kitchen": "oven flour saffron kettle recipe pepper dough ladle spoon vinegar",
    "garden": "tulip spade compost orchard beetle meadow thistle hedge blossom seedling",
}
TOPICS = {topic: words.split(" ") for topic, words in _WORDS.items()}


def sentence(words: list[str], draw: random.Random, length: int) -> str:
    return " ".join(draw.choice([*words, "the", "of", "and", "with"]) for _ in range(length))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 pairs; partners share a topic and one made-up name."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = []
    for index in range(600):
        words = list(TOPICS.values())[index % 4]
        name = f"name{index}"
        rows.append(
            {
                "a": f"{name} {sentence(words, draw, 4)}",
                "b": f"{sentence(words, draw, 12)} {name}",
                "topic": index % 4,
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="session")
def tokenizer_file(pairs_file: Path) -> Path:
    """A tokenizer of 600 pieces."""
    path = pairs_file.with_name("tokenizer.model")
    texts = [
        row[side]
        for row in map(json.loads, pairs_file.read_text().splitlines())
        for side in ("a", "b")
    ]
    path.write_bytes(train_tokenizer(texts, vocab_size=600, user_symbols=["[X]"]))
    return path


@pytest.fixture(scope="session")
def network_file(pairs_file: Path) -> Path:
    """A network that trains in seconds."""
    path = pairs_file.with_name("network.json")
    sizes = {
        "vocab_size": 600,
        "d_model": 64,
        "n_layers": 1,
        "n_heads": 2,
        "d_ff": 64,
        "max_seq_len": 48,
        "dropout": 0.1,
    }
    path.write_text(json.dumps(sizes))
    return path


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: a table of word vectors, near for words of one topic."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    random = np.random.default_rng(0)
    words = {"[UNK]": 0}
    table = [random.standard_normal(48)]
    for topic in TOPICS.values():
        direction = random.standard_normal(48) * 2
        for word in topic:
            words[word] = len(words)
            table.append(direction + random.standard_normal(48))
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    static = StaticEmbedding(tokenizer, embedding_weights=np.array(table, np.float32))
    folder = tmp_path_factory.mktemp("teacher") / "words"
    SentenceTransformer(modules=[static], device="cpu").save(str(folder))
    return folder
