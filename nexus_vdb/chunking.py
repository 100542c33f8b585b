"""Cutting documents into chunks that the model sees whole, without losing a character.

A document that fits is one chunk. Any other is split at paragraphs and sentences, a sentence that
is too long at lines, a line at words, a word into runs of characters; these pieces are packed
greedily, each chunk ends with a paragraph where one ends near its limit, and begins with the last
pieces of the one before it.

Token counts of pieces are added up, which is exact for tokenizers that never join words and a safe
estimate for nearly all others; a chunk of several pieces is counted once more as a whole, and
halved if it does not fit after all. That is spared where the document has as many tokens as its
pieces, single blanks between them, and the model would see a token more.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha1
from itertools import compress, pairwise
from typing import NamedTuple, TypeVar

from nexus_vdb.errors import ConfigError
from nexus_vdb.interfaces import TokenCounter
from nexus_vdb.types import Chunk, Document

__all__ = ["CHUNK_OVERLAP", "CHUNK_TOKENS", "Chunker", "Span", "chunk_id", "sentences"]

CHUNK_TOKENS, CHUNK_OVERLAP = 192, 24
"""Longest chunk, and what neighbours share at most, where nothing else is said. The more words a
vector is of, the less of each is in it, a narrow one above all; and the more chunks, the larger a
store."""

_NAMESPACE = uuid.UUID("0d2f5c0e-6f5b-4c53-9a55-7c1d9d1f3c42").bytes
_LEAST_TOKENS = 8
_TITLE_SHARE = 4  # a title takes at most this part of a chunk
_CHARACTERS = 16  # per token: a longer text is not tried whole, since it will hardly fit
_AROUND = 8  # tokens that are no characters: an ASCII text has so many more than characters at most
_CALL_CHARACTERS = 1 << 18  # counted in one call, so that memory stays bounded
_SPAN_CHARACTERS = 32  # what the bookkeeping of a span weighs, in characters
_TITLES_KEPT = 4096

_RUN = 32  # characters of a word that is too long; packed again, so short costs nothing

# No sentence ends after these, nor after a single letter (e.g., U.S., J. Smith) or a list number.
_ABBREVIATIONS = (
    "Dr Mr Mrs Ms Prof St Fig Figs fig figs Eq Eqs eq No Nos Vol Sec vs cf al approx ca"
)
_OPEN = "".join(rf"(?<!\b{word}\.)" for word in [*_ABBREVIATIONS.split(), r"[^\W\d_]"])
_OPEN += "".join(rf"(?<!\n{number}\.)" for number in (r"\d", r"\d\d"))

# A sentence ends at a blank line, at a mark and closing quotes before white space, or at a
# full-width mark. One set of first characters for all three lets `re` skip ahead.
_SENTENCE_END = re.compile(
    rf"[\n.!?…。！？](?:(?<=\n)\s*\n|(?<=[.!?…]){_OPEN}[\"'”’»)\]]*\s|(?<=[。！？])[”’」』）]*)"
)
_PARAGRAPH_SHARE = 0.75  # of a chunk that has to be full for it to end with a paragraph
_LINE_END = re.compile(r"\n")
_WORD = re.compile(r"\S+")

Span = tuple[int, int]
_S = TypeVar("_S", bound="tuple[int, ...]")


def chunk_id(document_id: str, ordinal: int) -> str:
    """The UUIDv5 of a document's chunk: the same on every machine."""
    # What `uuid.uuid5` does, at a quarter of its time: a million are made for a million documents.
    name = _NAMESPACE + f"{document_id}/{ordinal}".encode()
    digits = sha1(name, usedforsecurity=False).hexdigest()
    variant = "89ab89ab89ab89ab"[int(digits[16], 16)]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


class Chunker:
    """Cuts documents into chunks of bounded length.

    Args:
        counter: Counts tokens as the model sees them; an encoder, usually.
        max_tokens: Of a chunk with its title; lowered to `counter.max_tokens`.
        overlap: Tokens repeated from one chunk to the next at most, in whole pieces; lowered to
            half of a chunk.

    Raises:
        ConfigError: the numbers make no sense.
    """

    def __init__(
        self, counter: TokenCounter, max_tokens: int = CHUNK_TOKENS, overlap: int = CHUNK_OVERLAP
    ) -> None:
        if max_tokens < _LEAST_TOKENS:
            raise ConfigError(
                f"max_tokens={max_tokens}: a chunk has at least {_LEAST_TOKENS}",
                hint="raise --chunk-tokens",
            )
        if overlap < 0:
            raise ConfigError(f"overlap={overlap} is less than none")
        self._counter = counter
        self._limit = min(max_tokens, counter.max_tokens)
        self._overlap = min(overlap, self._limit // 2)
        self._strict = self._limit == counter.max_tokens
        joined, apart, also = counter.count_tokens(["a\na", "a", "a"])
        self._joint = max(0, joined - apart - also)  # tokens of the line break after a title
        self._sure = self._limit - self._limit // _TITLE_SHARE - self._joint - _AROUND
        self._titles: dict[str, tuple[str, int]] = {}

    def chunk(self, document: Document) -> list[Chunk]:
        """The chunks of one document, in order: `document.text[start:end] == chunk.text`.

        Chunks neither begin nor end with white space. A blank text has none.
        """
        return self.chunk_all([document])

    def chunk_all(self, documents: Sequence[Document]) -> list[Chunk]:
        """The chunks of several documents, one document after the other.

        Where all documents fit, this costs one call of the counter.
        """
        spans = [_trim(document.text, (0, len(document.text))) for document in documents]
        whole = self._count_whole(documents, spans)
        chunks: list[Chunk] = []
        for row, document in enumerate(documents):
            budget = self._limit - self._title_tokens(document.title)
            if whole.get(row, budget + 1) <= budget:
                cuts = iter([spans[row]])
            else:
                cuts = self._cut(document.text, spans[row], budget, tokens=whole.get(row))
            chunks.extend(_chunks(document, cuts))
        return chunks

    def embedding_text(self, chunk: Chunk) -> str:
        """What is embedded: the title, cut to a quarter of the chunk's tokens, and the text.

        A character of so many tokens that both would be too long stands alone.
        """
        title, _ = self._title(chunk.title)
        room = self._limit - self._title_tokens(chunk.title)
        if not title or (len(chunk.text) == 1 and self._count([chunk.text])[0] > room):
            return chunk.text
        return f"{title}\n{chunk.text}"

    def _count_whole(self, documents: Sequence[Document], spans: Sequence[Span]) -> dict[int, int]:
        """Tokens of each text that is worth trying whole, by row; 0 where any number would fit."""
        whole: dict[int, int] = {}
        counted: dict[int, str] = {}
        for row, (start, end) in enumerate(spans):
            text = documents[row].text
            if start < end <= start + self._sure and text.isascii():
                whole[row] = 0
            elif start < end <= start + _CHARACTERS * self._limit:
                counted[row] = text[start:end]
        titles = [document.title for document in documents]
        counts = self._count_with_titles(list(counted.values()), titles)
        return whole | dict(zip(counted, counts, strict=True))

    def _count_with_titles(self, texts: list[str], titles: Iterable[str]) -> list[int]:
        """Tokens of each text; titles not met before are counted in the same call, and kept."""
        if len(self._titles) > _TITLES_KEPT:
            self._titles.clear()
        bound = _CHARACTERS * self._limit
        new = [
            title
            for title in dict.fromkeys(titles)
            if len(title) <= bound and title not in self._titles
        ]
        counts = self._count(texts + new)
        for title, tokens in zip(new, counts[len(texts) :], strict=True):
            self._keep_title(title, tokens)
        return counts[: len(texts)]

    def _title(self, title: str) -> tuple[str, int]:
        """A title as it is embedded, and its tokens."""
        known = self._titles.get(title)
        if known is not None:
            return known
        whole = len(title) <= _CHARACTERS * self._limit
        return self._keep_title(title, self._count([title])[0] if whole else self._limit)

    def _title_tokens(self, title: str) -> int:
        cut, tokens = self._title(title)
        return tokens + self._joint if cut else 0

    def _keep_title(self, title: str, tokens: int) -> tuple[str, int]:
        cut, limit = title.strip(), self._limit // _TITLE_SHARE
        if tokens > limit:
            start, end = next(self._cut(cut, (0, len(cut)), limit), (0, 0))
            cut = cut[start:end]
            tokens = self._count([cut])[0]
            if tokens > limit:  # not even a character fits
                cut = ""
        self._titles[title] = cut, tokens
        return cut, tokens

    def _cut(
        self, text: str, span: Span, budget: int, *, tokens: int | None = None
    ) -> Iterator[Span]:
        """The chunks of a text that is too long for one; of one not counted, read as needed."""
        pieces, adds_up = self._pieces(text, sentences(text, span), budget), False
        if tokens is not None and not self._strict:
            known = list(pieces)
            pieces, adds_up = iter(known), sum(piece.tokens for piece in known) == tokens
        reached = -1
        for block in _blocks(_pack(text, pieces, budget, overlap=self._overlap)):
            for start, end in self._verified(text, block, budget, adds_up=adds_up):
                if end > reached:  # the half of a list may be all that it repeats
                    yield start, end
                    reached = end

    def _pieces(
        self, text: str, spans: Iterable[Span], budget: int, level: int = 0
    ) -> Iterator[_Piece]:
        """The spans with their tokens; those that are too long, cut finer."""
        finer = _FINER[min(level, len(_FINER) - 1)]
        for block in _blocks([span] for span in spans):
            short = [span for (span,) in block if span[1] - span[0] <= _CHARACTERS * budget]
            counts = self._count([text[start:end] for start, end in short])
            fitting = dict(zip(short, counts, strict=True))
            for (span,) in block:
                tokens = fitting.get(span, budget + 1)
                if tokens <= budget or span[1] - span[0] == 1:
                    yield _Piece(*span, tokens)
                else:
                    yield from self._pieces(text, finer(text, span), budget, level + 1)

    def _verified(
        self, text: str, packed: Sequence[Sequence[_Piece]], budget: int, *, adds_up: bool = False
    ) -> Iterator[Span]:
        """The span of each list of pieces; halved where it is longer than its parts added up."""
        doubtful = [
            len(pieces) > 1 and not (adds_up and _evenly_spaced(text, pieces)) for pieces in packed
        ]
        joined = compress(packed, doubtful)
        counts = iter(self._count([text[one[0].start : one[-1].end] for one in joined]))
        for pieces, doubt in zip(packed, doubtful, strict=True):
            if doubt and next(counts) > budget:
                half = len(pieces) // 2
                yield from self._verified(text, [pieces[:half], pieces[half:]], budget)
            else:
                yield pieces[0].start, pieces[-1].end

    def _count(self, texts: Sequence[str]) -> list[int]:
        return self._counter.count_tokens(texts) if texts else []


class _Piece(NamedTuple):
    start: int
    end: int
    tokens: int


def _pack(
    text: str, pieces: Iterable[_Piece], budget: int, *, overlap: int
) -> Iterator[list[_Piece]]:
    """As many pieces as fit, beginning with the last ones of the list before."""
    current: list[_Piece] = []
    total = 0
    for piece in pieces:
        if current and total + piece.tokens > budget:
            end = _best_end(text, current, piece, budget=budget)
            done, current = current[:end], [*current[end:], piece]
            yield done
            total = sum(one.tokens for one in current)
            repeated = _tail(done, min(overlap, budget - total))
            current = [*repeated, *current]
            total += sum(one.tokens for one in repeated)
        else:
            current.append(piece)
            total += piece.tokens
    if current:
        yield current


def _best_end(text: str, pieces: list[_Piece], following: _Piece, *, budget: int) -> int:
    """How many of the pieces to take: up to the last paragraph, if they are nearly enough."""
    taken, left = sum(piece.tokens for piece in pieces), following.tokens
    after = following
    for end in range(len(pieces), 0, -1):
        piece = pieces[end - 1]
        if taken < _PARAGRAPH_SHARE * budget or left > budget:
            break
        if text.count("\n", piece.end, after.start) > 1:
            return end
        taken, left, after = taken - piece.tokens, left + piece.tokens, piece
    return len(pieces)


def _evenly_spaced(text: str, pieces: Sequence[_Piece]) -> bool:
    """Whether a single blank or line break is between them."""
    return all(text[one.end : other.start] in (" ", "\n") for one, other in pairwise(pieces))


def _tail(pieces: Sequence[_Piece], room: int) -> list[_Piece]:
    first = len(pieces)
    while first and pieces[first - 1].tokens <= room:
        first -= 1
        room -= pieces[first].tokens
    return list(pieces[first:])


def _blocks(lists: Iterable[Sequence[_S]]) -> Iterator[list[Sequence[_S]]]:
    """Lists of spans together until their text is long enough for one call of the counter."""
    block: list[Sequence[_S]] = []
    characters = 0
    for spans in lists:
        block.append(spans)
        characters += spans[-1][1] - spans[0][0] + _SPAN_CHARACTERS * len(spans)
        if characters >= _CALL_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def sentences(text: str, span: Span) -> Iterator[Span]:
    """The sentences of a part of a text, as spans of the whole; the last one may be empty."""
    return _between(text, span, _SENTENCE_END)


def _lines(text: str, span: Span) -> Iterator[Span]:
    return _between(text, span, _LINE_END)


def _words(text: str, span: Span) -> Iterator[Span]:
    return (match.span() for match in _WORD.finditer(text, *span))


def _runs(_: str, span: Span) -> Iterator[Span]:
    start, end = span
    return ((at, min(at + _RUN, end)) for at in range(start, end, _RUN))


def _halves(_: str, span: Span) -> Iterator[Span]:
    middle = sum(span) // 2
    return iter([(span[0], middle), (middle, span[1])])


_FINER = (_lines, _words, _runs, _halves)


def _between(text: str, span: Span, ends: re.Pattern[str]) -> Iterator[Span]:
    """What lies between the ends of the matches, without the white space around it."""
    start = span[0]
    for match in ends.finditer(text, *span):
        if (trimmed := _trim(text, (start, match.end())))[0] < trimmed[1]:
            yield trimmed
        start = match.end()
    if start < span[1]:
        yield _trim(text, (start, span[1]))


def _trim(text: str, span: Span) -> Span:
    """The span without the white space around it; empty if there is nothing else."""
    part = text[slice(*span)].rstrip()
    end = span[0] + len(part)
    return end - len(part.lstrip()), end


def _chunks(document: Document, spans: Iterable[Span]) -> Iterator[Chunk]:
    for ordinal, (start, end) in enumerate(spans):
        yield Chunk(
            id=chunk_id(document.id, ordinal),
            document_id=document.id,
            ordinal=ordinal,
            text=document.text[start:end],
            start=start,
            end=end,
            metadata=document.metadata,
            title=document.title,
        )
