"""A file of known size that is read here and there: what is the same wherever its bytes come from.

An archived object as a file that can be sought in: only what is read is fetched.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


from collections.abc import Callable
from typing import BinaryIO, cast


class SeekableFile(io.RawIOBase):
    """A raw file of *size* bytes; who derives from it says how bytes come from where it stands."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.position = 0

    @property
    def left(self) -> int:
        """How many bytes there are from here to the end."""
        return max(0, self.size - self.position)

    @abstractmethod
    def fetch(self, into: memoryview) -> int:
        """Put bytes from `position` on, some of the `left` ones at least, into *into* and return how many."""

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
        found = self.fetch(into)
        self.position += found
        return found


_TAIL = 64 * 1024
_FIRST_BLOCK = 256 * 1024
_LARGEST_BLOCK = 8 * 1024**2


class _Ranges(SeekableFile):
    """Blocks of an object; they grow while it is read on, and start small after a jump.

    The end is fetched in one piece and kept, because a zip is read from there.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__(size)
        self._fetch = fetch
        self._start, self._block, self._growth = 0, b"", _FIRST_BLOCK
        self._tail: bytes | None = None

    def fetch(self, into: memoryview) -> int:
        start, block = self._around(self.position)
        found = block[self.position - start : self.position - start + len(into)]
        into[: len(found)] = found
        return len(found)

    def _around(self, position: int) -> tuple[int, bytes]:
        tail_start = max(0, self.size - _TAIL)
        if position >= tail_start:
            if self._tail is None:
                self._tail = self._whole(tail_start, self.size)
            return tail_start, self._tail
        end = self._start + len(self._block)
        if not self._start <= position < end:
            self._growth = min(self._growth * 2, _LARGEST_BLOCK) if position == end else _FIRST_BLOCK
            self._block = self._whole(position, min(position + self._growth, tail_start))
            self._start = position
        return self._start, self._block

    def _whole(self, start: int, end: int) -> bytes:
        data = self._fetch(start, end)
        if len(data) != end - start:
            raise OSError(f"the archived object gave {len(data)} of the {end - start} bytes at {start}")
        return data


def open_ranges(fetch: Callable[[int, int], bytes], size: int) -> BinaryIO:
    """Return a file of *size* bytes over *fetch*, which gives those from a start up to an end."""
    return cast("BinaryIO", io.BufferedReader(_Ranges(fetch, size), _TAIL))
