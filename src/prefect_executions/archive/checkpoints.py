"""The checkpoints in the archive, one object each, numbered without a gap and never replaced.

::

    checkpoints/<number // 1000, 8 digits>/<number, 12 digits>.json
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from prefect_executions.errors import NotFoundError
from prefect_executions.objectstore.interface import Store

_ROOT = "checkpoints/"
_BLOCK = 1000
_AT_ONCE = 50
_CHECKPOINT_NAME = re.compile(r"checkpoints/\d{8}/(\d{12})\.json")


class Kept(NamedTuple):
    """A checkpoint as it is kept."""

    number: int
    data: bytes


class Checkpoints:
    """The checkpoints in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def last(self) -> int:
        """Return the number of the newest, or 0 where there is none."""
        blocks = [name for name in self._store.list_children(_ROOT) if name.isdigit()]
        return max((number for block in sorted(blocks)[-2:] for number in self._in_block(block)), default=0)

    def numbers(self) -> list[int]:
        """Return the numbers of all that are there, from the first on."""
        return sorted(number for block in self._store.list_children(_ROOT) for number in self._in_block(block))

    def read(self, numbers: list[int]) -> Iterator[Kept]:
        """Yield these checkpoints in this order; one that is not there is left out."""
        for start in range(0, len(numbers), _AT_ONCE):
            batch = numbers[start : start + _AT_ONCE]
            found = self._store.get_many([_key(number) for number in batch])
            yield from (Kept(number, found[_key(number)]) for number in batch if _key(number) in found)

    def get(self, number: int) -> bytes:
        """Return one checkpoint.

        Raises:
            NotFoundError: If it is not there.
        """
        for kept in self.read([number]):
            return kept.data
        raise NotFoundError(f"There is no checkpoint {number} in the archive {self._store.url}")

    def add(self, number: int, data: bytes) -> bool:
        """Keep the checkpoint *number*, unless another has; return whether this call did."""
        return self._store.put_if_absent(_key(number), data)

    def _in_block(self, block: str) -> Iterator[int]:
        for found in self._store.list(f"{_ROOT}{block}/"):
            named = _CHECKPOINT_NAME.fullmatch(found.key)
            if named:
                yield int(named[1])


def _key(number: int) -> str:
    return f"{_ROOT}{number // _BLOCK:08}/{number:012}.json"
