from __future__ import annotations

import uuid
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexus_vdb.chunking import Chunker, chunk_id, sentences
from nexus_vdb.encoder import OnnxEncoder, load_encoder
from nexus_vdb.errors import ConfigError
from nexus_vdb.interfaces import TokenCounter
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


def _embedded(chunker: Chunker, counter: TokenCounter, chunks: list[Chunk]) -> list[int]:
    return counter.count_tokens([chunker.embedding_text(chunk) for chunk in chunks])


texts = st.text(
    st.sampled_from(list("abcdefgh  \n.!?\"'。…é中\u00a0")) | st.characters(codec="utf-8"),
    max_size=600,
)

# What has broken tokenizers and splitters before: languages without spaces, ligatures that become
# many letters, emoji of several characters, marks that combine, every kind of line end and blank.
ODD = [
    *("我们在这里写字。没有空格！", "ภาษาไทยไม่มีช่องว่าง", "日本語です。", "ﷺ", "ﬃ", "½", "İ", "ß"),
    *("👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "e\u0301\u0327", "\u0300" * 9, "नमस्ते", "السلام عليكم", "\U0010ffff"),
    *("\r\n", "\r", "\n\n", "\r\n\r\n", "\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\t", " "),
    *("\u200b", "\u200d", "\ufeff", "\u00ad", "\x00", "\u3000", "\u180e", "\u2060"),
    *(
        "e.g. ",
        "Dr. ",
        "3.14",
        "...",
        '." ',
        "?! ",
        "a" * 400,
        "/" * 90,
        "-" * 90,
        "_x" * 70,
        "0" * 99,
    ),
]
odd_texts = st.lists(st.sampled_from(ODD) | st.text(max_size=9), max_size=80).map("".join)


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
    _check_slices(chunks, document)
    if kind is not PeevishCounter:  # a title that costs more beside a text cannot be foreseen
        assert all(tokens <= max_tokens for tokens in _embedded(chunker, counter, chunks))
    assert all(tokens <= max_tokens for tokens in counter.count_tokens([c.text for c in chunks]))
    assert chunker.chunk_all([document, document]) == chunks + chunks


def _check_slices(chunks: list[Chunk], document: Document) -> None:
    """Slices in order that leave out white space alone."""
    text, covered = document.text, [False] * len(document.text)
    for ordinal, chunk in enumerate(chunks):
        assert text[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        assert chunk.id == chunk_id(document.id, ordinal)
        assert (chunk.document_id, chunk.ordinal) == (document.id, ordinal)
        assert (chunk.title, chunk.metadata) == (document.title, document.metadata)
        covered[chunk.start : chunk.end] = [True] * len(chunk.text)
    assert all(there or character.isspace() for there, character in zip(covered, text, strict=True))
    assert [chunk.start for chunk in chunks] == sorted({chunk.start for chunk in chunks})
    assert [chunk.end for chunk in chunks] == sorted({chunk.end for chunk in chunks})


@pytest.fixture(scope="module")
def encoder() -> OnnxEncoder:
    return load_encoder(threads=1)


@settings(deadline=None, max_examples=150)
@given(
    text=odd_texts,
    title=st.just("") | odd_texts,
    max_tokens=st.integers(32, 600),
    overlap=st.integers(0, 64),
)
@example(text="\ufdfa", title="ภาษาไทยไม่มีช่องว่าง", max_tokens=32, overlap=0)  # one of 26 tokens
@example(text="a" * 800 + "CN0:¡0ﯬﰀ0:0:\x800Õ", title="", max_tokens=32, overlap=9)  # halved
def test_the_shipped_tokenizer_never_counts_more_than_the_limit(
    encoder: OnnxEncoder, text: str, title: str, max_tokens: int, overlap: int
) -> None:
    chunker = Chunker(encoder, max_tokens, overlap)
    document = Document("d", text, {}, title)
    chunks = chunker.chunk(document)
    _check_slices(chunks, document)
    limit = min(max_tokens, encoder.max_tokens)
    assert all(tokens <= limit for tokens in _embedded(chunker, encoder, chunks))


@pytest.mark.parametrize(
    "text",
    [
        "A sentence of eight words stands here again. " * 45_000,
        "我们在这里写一些文字没有空格也没有标点" * 30_000,
        "0123456789abcdef" * 125_000,
        ". " * 150_000,
        "x\n \n" * 100_000,
        "word " * 200_000,
        "".join(ODD) * 400,
    ],
    ids=["prose", "no spaces", "one word", "dots", "blank lines", "one sentence", "odd"],
)
def test_megabytes_are_cut_by_the_shipped_tokenizer(encoder: OnnxEncoder, text: str) -> None:
    chunker = Chunker(encoder, 256, 32)
    document = Document("d", text)
    chunks = chunker.chunk(document)
    _check_slices(chunks, document)
    tokens = encoder.count_tokens([chunk.text for chunk in chunks])
    assert max(tokens) <= 256
    assert sum(tokens) / len(tokens) > 160  # no crumbs


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


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("See Dr. Smith, Fig. 3. Then rest.", ["See Dr. Smith, Fig. 3.", "Then rest."]),
        ("Pi is 3.14, e.g. here. Yes.", ["Pi is 3.14, e.g. here.", "Yes."]),
        ("J. R. Doe et al. found it. Good.", ["J. R. Doe et al. found it.", "Good."]),
        ("Is it? It is! So… yes.", ["Is it?", "It is!", "So…", "yes."]),
        ('He said "go." (She left.) End.', ['He said "go."', "(She left.)", "End."]),
        ("List:\n1. One thing.\n12. Another.", ["List:\n1. One thing.", "12. Another."]),
        ("One line\n\r\n \nOther line\nsame one", ["One line", "Other line\nsame one"]),
        ("一句话。“两句话！”三句", ["一句话。", "“两句话！”", "三句"]),
        ("no marks at all", ["no marks at all"]),
    ],
)
def test_sentences_end_where_people_see_them_end(text: str, seen: list[str]) -> None:
    spans = sentences(text, (0, len(text)))
    assert [text[start:end] for start, end in spans] == seen


def test_chunk_ends_with_a_paragraph_that_ends_near_its_limit() -> None:
    text = "aa bb cc dd. ee ff gg.\n\nhh. ii jj kk. ll mm nn oo."
    chunks = Chunker(WordCounter(), 9, 1).chunk(Document("d", text))
    assert [chunk.text for chunk in chunks] == [
        "aa bb cc dd. ee ff gg.",
        "hh. ii jj kk. ll mm nn oo.",
    ]
    early = text.replace("\n\n", " ").replace("dd. ", "dd.\n\n")
    chunks = Chunker(WordCounter(), 9, 1).chunk(Document("d", early))
    assert [chunk.text for chunk in chunks] == [
        "aa bb cc dd.\n\nee ff gg. hh.",
        "hh. ii jj kk. ll mm nn oo.",
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


class Noting(WordCounter):
    """Keeps what it has counted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        self.seen += texts
        return super().count_tokens(texts)


def test_a_short_text_is_not_counted() -> None:
    counter = Noting()
    chunker = Chunker(counter, 64, 0)
    counter.seen.clear()
    assert len(chunker.chunk(Document("d", "Of 40 characters there are 40 at most."))) == 1
    assert not any(counter.seen)
    assert len(chunker.chunk(Document("d", "Of 10 letters some may be mány tokens."))) == 1
    assert counter.seen[-1] == "Of 10 letters some may be mány tokens."


@pytest.mark.parametrize(
    ("gap", "most", "again"),
    [(" ", 511, False), ("\n", 511, False), ("  ", 511, True), (" ", 24, True)],
    ids=["blank", "line break", "two blanks", "all that the model sees"],
)
def test_chunks_are_counted_once_more_where_their_pieces_may_not_add_up(
    gap: str, most: int, again: bool
) -> None:
    counter = Noting()
    counter.max_tokens = most
    text = gap.join(["A sentence of six words here."] * 12)
    chunks = [chunk.text for chunk in Chunker(counter, 24, 0).chunk(Document("d", text))]
    assert len(chunks) > 5
    assert (chunks[0] in counter.seen) == again


def test_chunk_ids_are_uuids_of_document_and_ordinal() -> None:
    assert chunk_id("d", 0) == "0e80321e-8798-50d5-a4ba-f06c6562de50"
    assert uuid.UUID(chunk_id("d", 0)).version == 5
    assert len({chunk_id(name, i) for name in ("a", "b/1", "b") for i in range(3)}) == 9


@pytest.mark.parametrize(("max_tokens", "overlap"), [(7, 0), (256, -1)])
def test_senseless_numbers_are_refused(max_tokens: int, overlap: int) -> None:
    with pytest.raises(ConfigError):
        Chunker(WordCounter(), max_tokens, overlap)
