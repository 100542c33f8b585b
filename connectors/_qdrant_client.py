"""Asking a Qdrant server again when it cannot answer just now."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from qdrant_client import QdrantClient

from nexus_vdb.connectors._qdrant_address import Address
from nexus_vdb.connectors._qdrant_faults import answered, fault_of, wait_asked_for
from nexus_vdb.errors import StoreError, StoreUnavailable

__all__ = ["Retry", "Server"]

T = TypeVar("T")

_log = logging.getLogger("nexus_vdb.connectors.qdrant")


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to wait between tries: exponential backoff with jitter.

    Attributes:
        first: Seconds after the first try; doubled each time.
        most: Seconds at most.
        contact: Seconds after which a server that never answered is given up, so that a wrong
            address is told at once; for one that has answered, the patience of the URL counts.
    """

    first: float = 0.25
    most: float = 15.0
    contact: float = 10.0

    def waits(self) -> Iterator[float]:
        """Without end; each between half of its length and all of it."""
        for one in count():
            yield min(self.most, self.first * 2 ** min(one, 30)) * random.uniform(0.5, 1)  # noqa: S311


class Server:
    """A server that is asked again while it is down or busy.

    Args:
        address: Where it is.
        retry: Waits between tries.
    """

    def __init__(self, address: Address, retry: Retry) -> None:
        self.address = address
        self._retry = retry
        self._client: QdrantClient | None = address.connect()
        self._known = False

    def ask(self, request: Callable[[QdrantClient], T]) -> T:
        """The answer to a request, which may be made several times.

        Each further try is logged as a warning. A server that says how long it wants to be left
        alone (Retry-After) is left alone for so long, or given up if that is too long.

        Raises:
            StoreUnavailable: it was out of reach or too busy, for as long as its patience lasted.
            StoreNotFound: there is no such collection.
            StoreError: it refused.
        """
        if self._client is None:
            raise StoreError(f"{self.address.url} is closed", hint="open it again")
        started, waits, tries = time.monotonic(), self._retry.waits(), 0
        while True:
            tries += 1
            try:
                answer = request(self._client)
            except Exception as error:
                fault = fault_of(error, self.address)
                if fault is None:
                    raise
                self._known = self._known or answered(error)
                if not isinstance(fault, StoreUnavailable):
                    raise fault from error
                pause = max(next(waits), wait_asked_for(error))
                spent = time.monotonic() - started
                if spent + pause > self._patience():
                    raise self._given_up(str(fault), spent=spent, tries=tries) from error
                reason = str(fault)
            else:
                self._known = True
                return answer
            _log.warning(
                "%s: %s; try %d in %.1f s",
                self._where,
                reason,
                tries + 1,
                pause,
                extra={"event": "retry"},
            )
            time.sleep(pause)

    def close(self) -> None:
        """Let go of the connections; a second call does nothing."""
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def _where(self) -> str:
        return f"Qdrant at {self.address.host}:{self.address.grpc or self.address.port}"

    def _patience(self) -> float:
        patience = float(self.address.patience)
        return patience if self._known else min(patience, self._retry.contact)

    def _given_up(self, reason: str, *, spent: float, tries: int) -> StoreUnavailable:
        tried = "once" if tries == 1 else f"{tries} times in {spent:.0f} s"
        return StoreUnavailable(
            f"{self._where} was asked {tried} without success: {reason}",
            hint=f"see that it runs, and that host, port and TLS are right in {self.address.url}; "
            "what is stored stays stored, and the same command goes on from there",
        )
