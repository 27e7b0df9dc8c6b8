"""A file of known size that is read here and there: what is the same wherever its bytes come from."""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Sought(io.RawIOBase):
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
