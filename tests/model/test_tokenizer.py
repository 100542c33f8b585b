"""The tokenizer: what it keeps whole, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexus_vdb.errors import ConfigError, ModelError, SourceError
from nexus_vdb.model.tokenizer import load_tokenizer, piece_texts, train_tokenizer


def test_case_is_folded_and_user_symbols_stay_whole(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    assert tokenizer.encode("Harbour TIDE") == tokenizer.encode("harbour tide")
    assert "[X]" in tokenizer.encode("harbour [X] tide", out_type=str)
    assert tokenizer.get_piece_size() == 600


def test_what_it_never_saw_is_spelled_in_bytes(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    ids = tokenizer.encode("黒猫 🐈")
    assert tokenizer.unk_id() not in ids
    assert tokenizer.decode(ids) == "黒猫 🐈"


def test_pieces_read_as_words(tokenizer_file: Path) -> None:
    texts = piece_texts(load_tokenizer(tokenizer_file))
    assert len(texts) == 600
    assert "harbour" in texts


def test_a_vocabulary_larger_than_the_corpus_is_an_error() -> None:
    with pytest.raises(ConfigError, match="vocab_size=5000") as caught:
        train_tokenizer(["a few words only"] * 20, vocab_size=5000)
    assert "--vocab-size" in caught.value.hint


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_no_text_at_all_is_an_error(texts: list[str]) -> None:
    with pytest.raises(SourceError, match="no text to train a tokenizer on"):
        train_tokenizer(texts, vocab_size=300)


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ModelError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "tokenizer.model")
