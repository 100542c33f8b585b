from __future__ import annotations

import uuid
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_vdb.chunking import Chunker, chunk_id
from nexus_vdb.errors import ConfigError
from nexus_vdb.types import Chunk, Document


class WordCounter:
    """A token for every four characters of a word, as of subwords; counts its calls."""

    max_tokens = 512

    def __init__(self) -> None:
        self.calls = 0

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        self.calls += 1
        return [sum((len(word) + 3) // 4 for word in text.split()) for text in texts]


class PeevishCounter(WordCounter):
    """Whole texts count more than their parts do, against all rules."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        counts = super().count_tokens(texts)
        return [count * 3 // 2 if count > 6 else count for count in counts]


class ByteCounter(WordCounter):
    """A token for every byte, and two around each text."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.encode()) + 2 for text in texts]


def _embedded(chunker: Chunker, counter: WordCounter, chunks: list[Chunk]) -> list[int]:
    return counter.count_tokens([chunker.embedding_text(chunk) for chunk in chunks])


texts = st.text(
    st.sampled_from(list("abcdefgh  \n.!?\"'。…é中\u00a0")) | st.characters(codec="utf-8"),
    max_size=600,
)


@settings(deadline=None, max_examples=150)
@given(
    text=texts,
    title=st.just("") | st.text(st.sampled_from("ab c"), max_size=80),
    kind=st.sampled_from([WordCounter, PeevishCounter, ByteCounter]),
    max_tokens=st.integers(24, 60),
    overlap=st.integers(0, 40),
)
def test_chunks_keep_every_character_and_every_limit(
    text: str, title: str, kind: type[WordCounter], max_tokens: int, overlap: int
) -> None:
    counter = kind()
    chunker = Chunker(counter, max_tokens, overlap)
    document = Document("d", text, {"year": 1999}, title)
    chunks = chunker.chunk(document)
    covered = [False] * len(text)
    for ordinal, chunk in enumerate(chunks):
        assert text[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        assert (chunk.document_id, chunk.ordinal) == ("d", ordinal)
        assert (chunk.id, chunk.title, chunk.metadata) == (
            chunk_id("d", ordinal),
            title,
            {"year": 1999},
        )
        covered[chunk.start : chunk.end] = [True] * len(chunk.text)
    assert all(there or character.isspace() for there, character in zip(covered, text, strict=True))
    assert [chunk.start for chunk in chunks] == sorted({chunk.start for chunk in chunks})
    assert [chunk.end for chunk in chunks] == sorted({chunk.end for chunk in chunks})
    if kind is not PeevishCounter:  # a title that costs more beside a text cannot be foreseen
        assert all(tokens <= max_tokens for tokens in _embedded(chunker, counter, chunks))
    assert all(tokens <= max_tokens for tokens in counter.count_tokens([c.text for c in chunks]))
    assert chunker.chunk_all([document, document]) == chunks + chunks


def test_text_that_fits_is_one_trimmed_chunk() -> None:
    (chunk,) = Chunker(WordCounter(), 16, 4).chunk(Document("d", "  one. two!\n\n three \n"))
    assert (chunk.text, chunk.start, chunk.end) == ("one. two!\n\n three", 2, 19)


def test_blank_text_has_no_chunks() -> None:
    assert Chunker(WordCounter()).chunk(Document("d", " \n\t ")) == []


def test_documents_that_fit_cost_one_call() -> None:
    counter = WordCounter()
    chunker = Chunker(counter)
    before = counter.calls
    documents = [Document(str(i), f"text {i}", title=f"title {i % 3}") for i in range(50)]
    chunks = chunker.chunk_all(documents)
    assert counter.calls == before + 1
    assert [chunk.document_id for chunk in chunks] == [str(i) for i in range(50)]
    assert chunker.embedding_text(chunks[4]) == "title 1\ntext 4"
    assert counter.calls == before + 1


def test_sentences_are_packed_whole_and_overlap_whole() -> None:
    text = 'aa bb cc dd. Ee ff gg hh! "Ii jj kk ll?" Mm nn oo pp.\n\nqq rr ss tt'
    chunks = Chunker(WordCounter(), 8, 4).chunk(Document("d", text))
    assert [chunk.text for chunk in chunks] == [
        "aa bb cc dd. Ee ff gg hh!",
        'Ee ff gg hh! "Ii jj kk ll?"',
        '"Ii jj kk ll?" Mm nn oo pp.',
        "Mm nn oo pp.\n\nqq rr ss tt",
    ]
    apart = Chunker(WordCounter(), 8, 3).chunk(Document("d", text))
    assert [chunk.text for chunk in apart] == [
        "aa bb cc dd. Ee ff gg hh!",
        '"Ii jj kk ll?" Mm nn oo pp.',
        "qq rr ss tt",
    ]


def test_long_sentence_is_cut_at_lines_then_words_then_characters() -> None:
    text = f"{'aa ' * 7}aa\n{'bb ' * 9}bb {'c' * 50}"
    chunks = Chunker(WordCounter(), 8, 0).chunk(Document("d", text))
    assert [chunk.text for chunk in chunks] == [
        "aa " * 7 + "aa",
        "bb " * 7 + "bb",
        "bb bb",
        "c" * 32,
        "c" * 18,
    ]


def test_title_counts_and_is_cut_to_a_quarter() -> None:
    counter = WordCounter()
    chunker = Chunker(counter, 16, 0)
    chunks = chunker.chunk(Document("d", "aa " * 40, title="one two tree four five six"))
    assert [len(chunk.text.split()) for chunk in chunks] == [12, 12, 12, 4]
    assert chunker.embedding_text(chunks[0]) == "one two tree four\n" + chunks[0].text
    assert _embedded(chunker, counter, chunks) == [16, 16, 16, 8]


def test_limit_is_the_smaller_of_ours_and_the_models() -> None:
    counter = WordCounter()
    counter.max_tokens = 10
    chunks = Chunker(counter, 256, 32).chunk(Document("d", "aa " * 25))
    assert [len(chunk.text.split()) for chunk in chunks] == [10, 10, 10, 10]


def test_long_text_is_cut_in_calls_of_bounded_size() -> None:
    class Bounded(WordCounter):
        def count_tokens(self, texts: Sequence[str]) -> list[int]:
            assert sum(map(len, texts)) < 5_000_000
            return super().count_tokens(texts)

    counter = Bounded()
    text = "A sentence of six words here. " * 100_000 + "x" * 3_000_000
    chunks = Chunker(counter).chunk(Document("d", text))
    assert chunks[0].start == 0
    assert chunks[-1].end == len(text)
    assert all(a.end + 1 >= b.start for a, b in zip(chunks, chunks[1:], strict=False))
    assert max(WordCounter().count_tokens([chunk.text for chunk in chunks])) <= 256


def test_chunk_ids_are_uuids_of_document_and_ordinal() -> None:
    assert chunk_id("d", 0) == "0e80321e-8798-50d5-a4ba-f06c6562de50"
    assert uuid.UUID(chunk_id("d", 0)).version == 5
    assert len({chunk_id(name, i) for name in ("a", "b/1", "b") for i in range(3)}) == 9


@pytest.mark.parametrize(("max_tokens", "overlap"), [(7, 0), (256, -1)])
def test_senseless_numbers_are_refused(max_tokens: int, overlap: int) -> None:
    with pytest.raises(ConfigError):
        Chunker(WordCounter(), max_tokens, overlap)
