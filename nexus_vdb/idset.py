"""Sets of ids that fit in memory where a corpus does not."""

from __future__ import annotations

from hashlib import blake2b

__all__ = ["IdSet"]

_FREE = bytes(16)


class IdSet:
    """The ids seen so far, as 16-byte digests in one table: about 35 bytes an id, not 100."""

    def __init__(self) -> None:
        self._slots = 1 << 10
        self._table = bytearray(16 * self._slots)
        self._count = 0

    def add(self, key: str) -> bool:
        """Add an id; False if it was there."""
        if 4 * self._count >= 3 * self._slots:
            self._grow()
        new = self._put(blake2b(key.encode(), digest_size=16).digest())
        self._count += new
        return new

    def __contains__(self, key: str) -> bool:
        digest = blake2b(key.encode(), digest_size=16).digest()
        return self._table.startswith(digest, self._find(digest))

    def __len__(self) -> int:
        return self._count

    def _put(self, digest: bytes) -> bool:
        start = self._find(digest)
        if self._table.startswith(digest, start):
            return False
        self._table[start : start + 16] = digest
        return True

    def _find(self, digest: bytes) -> int:
        """Where it is, or would be."""
        start = 16 * (int.from_bytes(digest[:8], "little") % self._slots)
        while not self._table.startswith(digest, start):
            if self._table.startswith(_FREE, start):
                return start
            start = (start + 16) % len(self._table)
        return start

    def _grow(self) -> None:
        old = self._table
        self._slots *= 2
        self._table = bytearray(16 * self._slots)
        for start in range(0, len(old), 16):
            digest = bytes(old[start : start + 16])
            if digest != _FREE:
                self._put(digest)
