from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

import nexus_vdb as nx
from nexus_vdb.testing.encoder import FakeEncoder

TEXTS = [f"w{row % 7} w{row % 11} w{row % 13} text {row}" for row in range(300)]
IDS = [f"d{row}" for row in range(300)]
QUERIES = [f"w{row % 7} w{row % 13}" for row in range(50)]


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.fixture(params=["memory", "faiss", "qdrant-edge"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "qdrant-edge":
        pytest.importorskip("qdrant_edge")
    return "memory://" if request.param == "memory" else f"{request.param}://{tmp_path}/index"


@pytest.mark.parametrize("candidates", ["exact", 40])
def test_fifty_searches_at_once_answer_as_one_by_one(url: str, candidates: Any) -> None:
    async def main() -> None:
        async with nx.AsyncCollection(url, encoder=FakeEncoder()) as docs:
            assert await docs.add(TEXTS, ids=IDS) == IDS
            alone = [await docs.search(text, k=5, candidates=candidates) for text in QUERIES]
            together = await asyncio.gather(
                *(docs.search(text, k=5, candidates=candidates) for text in QUERIES)
            )
            assert together == alone
            assert await docs.search_batch(QUERIES, k=5, candidates=candidates) == alone

    run(main())


def test_the_first_fifty_searches_open_one_store(url: str) -> None:
    with nx.open(url, encoder=FakeEncoder()) as docs:
        docs.add(TEXTS, ids=IDS)
        expected = [] if url == "memory://" else [docs.search(text, k=3) for text in QUERIES]

    async def main() -> None:
        async with nx.AsyncCollection(url, encoder=FakeEncoder()) as docs:
            found = await asyncio.gather(*(docs.search(text, k=3) for text in QUERIES))
            assert found == expected

    if expected:
        run(main())


def test_searches_beside_writes_see_whole_states(url: str) -> None:
    async def main() -> None:
        async with nx.AsyncCollection(url, encoder=FakeEncoder()) as docs:
            await docs.add(TEXTS, ids=IDS)

            async def write() -> None:
                for row in range(8):
                    await docs.add([f"added {row}"], ids=[f"x{row}"])
                    await docs.delete([IDS[row]])

            async def read(text: str) -> None:
                hits = await docs.search(text, k=5, candidates=40)
                assert len(hits) == 5
                for hit in hits:
                    assert hit.text == TEXTS[int(hit.document_id[1:])]

            await asyncio.gather(write(), *(read(text) for text in QUERIES))
            assert await docs.count() == 300
            assert (await docs.get(["x7", "d3", "d30"])).document_ids == ["x7", "d30"]
            assert (await docs.info()).count == 300

    run(main())


def test_writes_take_turns_and_finish_though_cancelled(
    url: str,
) -> None:
    began, go_on = threading.Event(), threading.Event()

    class Slow(FakeEncoder):
        def encode(self, texts: Any) -> nx.QueryBatch:
            began.set()
            assert go_on.wait(10)
            return super().encode(texts)

    async def main() -> None:
        async with nx.AsyncCollection(url, encoder=Slow()) as docs:
            first = asyncio.create_task(docs.add(["one"], ids=["a"]))
            await asyncio.to_thread(began.wait, 10)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            second = asyncio.create_task(docs.add(["two"], ids=["a"]))
            await asyncio.sleep(0.05)
            go_on.set()
            await second
            assert (await docs.get(["a"])).texts == ["two"]

    run(main())


def test_the_other_methods(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n', encoding="utf-8")

    async def main() -> None:
        docs = nx.AsyncCollection(f"faiss://{tmp_path}/index", encoder=FakeEncoder())
        with pytest.raises(nx.StoreNotFound, match="nothing is stored"):
            await docs.search("one")
        report = await docs.ingest(corpus)
        assert (report.embedded, await docs.count()) == (2, 2)
        assert (await docs.search_like("a", k=1))[0].document_id == "b"
        vectors = (await docs.embed(["two"])).vectors
        assert (await docs.search_vectors(vectors, k=1))[0][0].document_id == "b"
        copied = await docs.copy_to(f"faiss://{tmp_path}/copy", verify=True)
        assert copied.verified is True
        assert docs.url == f"faiss://{tmp_path}/index"
        await docs.close()
        await docs.close()
        with pytest.raises(nx.StoreError, match="is closed"):
            await docs.search("one")

    run(main())


def test_nothing_of_a_collection_is_missing() -> None:
    """The two are not written twice, so they cannot drift; but a new method has to be listed."""
    sync = {name for name in dir(nx.Collection) if not name.startswith("_")}
    own = {name for name in dir(nx.AsyncCollection) if not name.startswith("_")}
    assert sync - own == {"encoder", "plan", "store", "writable"}
    assert own - sync == {"url"}
    for name in own - {"url"}:
        assert inspect.iscoroutinefunction(getattr(nx.AsyncCollection, name))
    signature = inspect.signature(nx.AsyncCollection.search).parameters
    assert list(signature)[:3] == ["self", "text", "k"]
