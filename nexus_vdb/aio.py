"""`AsyncCollection`: a collection whose methods are awaited, for servers and notebooks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from nexus_vdb.collection import Collection
from nexus_vdb.errors import StoreError
from nexus_vdb.interfaces import Encoder

__all__ = ["AsyncCollection"]

P = ParamSpec("P")
T = TypeVar("T")

_READERS = 8
"""Searches at once; the libraries beneath release the interpreter's lock while they compute."""

_Awaited = Callable[Concatenate["AsyncCollection", P], Coroutine[Any, Any, T]]


def _read(method: Callable[Concatenate[Collection, P], T]) -> _Awaited[P, T]:
    """A method that many tasks may await at once."""

    @wraps(method)
    async def awaited(self: AsyncCollection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(self._readers, partial(method, self._collection, *args, **kwargs))

    return awaited


def _write(method: Callable[Concatenate[Collection, P], T]) -> _Awaited[P, T]:
    """A method that waits until writes before it are done."""

    @wraps(method)
    async def awaited(self: AsyncCollection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(self._writer, partial(method, self._collection, *args, **kwargs))

    return awaited


class AsyncCollection:
    """`Collection` in threads: reads run beside one another and beside a write, writes in turn.

    A search beside a write sees the store before or after each of its batches. A task that is
    cancelled stops waiting; a write that has begun is finished all the same, and before the next.

        async with nx.AsyncCollection("faiss://./index") as docs:
            hits = await docs.search("which drugs lower blood pressure")

    Args:
        url: As for `open`.
        model: As for `open`.
        encoder: As for `open`; several threads use it at once.
    """

    def __init__(
        self, url: str, *, model: str | None = None, encoder: Encoder | None = None
    ) -> None:
        self._collection = Collection(url, model=model, encoder=encoder)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="nexus-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="nexus-write")

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._collection.url

    search = _read(Collection.search)
    search_batch = _read(Collection.search_batch)
    search_vectors = _read(Collection.search_vectors)
    search_like = _read(Collection.search_like)
    get = _read(Collection.get)
    info = _read(Collection.info)
    embed = _read(Collection.embed)
    copy_to = _read(Collection.copy_to)

    ingest = _write(Collection.ingest)
    add = _write(Collection.add)
    delete = _write(Collection.delete)

    async def count(self) -> int:
        """Records stored just now."""
        return await self._run(self._readers, lambda: self._collection.count)

    async def close(self) -> None:
        """Wait for what runs, then release the store; a second call does nothing."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        self._collection.close()

    async def _run(self, threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        try:
            future = asyncio.get_running_loop().run_in_executor(threads, call)
        except RuntimeError as error:
            raise StoreError(f"{self.url} is closed", hint="open it again") from error
        return await future

    async def __aenter__(self) -> AsyncCollection:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
