"""Seekable files over data that is fetched in ranges, such as a window of a zip or an object in a store."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_TAIL = 64 * 1024
_FIRST_BLOCK = 256 * 1024
_LARGEST_BLOCK = 8 * 1024**2


class SeekableFile(io.RawIOBase):
    """A raw file of *size* bytes; a subclass implements `fetch`, which reads at the current position."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.position = 0

    @property
    def left(self) -> int:
        """The number of bytes between the position and the end."""
        return max(0, self.size - self.position)

    @abstractmethod
    def fetch(self, into: memoryview) -> int:
        """Copy at least one of the `left` bytes at `position` into *into* and return how many were copied."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if origin + offset < 0:
            raise ValueError(f"cannot seek to {origin + offset}")
        self.position = origin + offset
        return self.position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        into = memoryview(buffer).cast("B")
        if not self.left or not len(into):
            return 0
        count = self.fetch(into)
        self.position += count
        return count


def open_ranges(fetch: Callable[[int, int], bytes], size: int) -> BinaryIO:
    """Return a file of *size* bytes; ``fetch(start, end)`` returns the bytes from *start* up to *end*.

    Only what is read is fetched.
    """
    return cast("BinaryIO", io.BufferedReader(_Ranges(fetch, size), _TAIL))


class _Ranges(SeekableFile):
    """An object in blocks, which grow while it is read sequentially and start small after a seek.

    The last 64 KiB are fetched once and cached, because a zip is read from its end.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__(size)
        self._fetch = fetch
        self._start, self._block, self._growth = 0, b"", _FIRST_BLOCK
        self._tail: bytes | None = None

    def fetch(self, into: memoryview) -> int:
        start, block = self._block_at(self.position)
        data = block[self.position - start : self.position - start + len(into)]
        into[: len(data)] = data
        return len(data)

    def _block_at(self, position: int) -> tuple[int, bytes]:
        tail_start = max(0, self.size - _TAIL)
        if position >= tail_start:
            if self._tail is None:
                self._tail = self._fetch_exactly(tail_start, self.size)
            return tail_start, self._tail
        end = self._start + len(self._block)
        if not self._start <= position < end:
            self._growth = min(self._growth * 2, _LARGEST_BLOCK) if position == end else _FIRST_BLOCK
            self._block = self._fetch_exactly(position, min(position + self._growth, tail_start))
            self._start = position
        return self._start, self._block

    def _fetch_exactly(self, start: int, end: int) -> bytes:
        data = self._fetch(start, end)
        if len(data) != end - start:
            raise OSError(f"the archived object returned {len(data)} of the {end - start} bytes at {start}")
        return data
