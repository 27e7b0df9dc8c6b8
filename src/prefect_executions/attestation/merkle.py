"""Merkle trees as RFC 6962 (section 2.1) hashes them: one digest for a list, a short proof for each of its entries."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256


def leaf(data: bytes) -> bytes:
    """Return the hash of one entry of the list."""
    return sha256(b"\x00" + data).digest()


class Tree:
    """The tree over a list of leaves, which has at least one."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        # Pairs from the left, an odd last one as it is: the same tree as RFC 6962 splits from the top.
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            level = self._levels[-1]
            above = [_node(*level[at : at + 2]) for at in range(0, len(level) - 1, 2)]
            self._levels.append(above + level[len(level) - len(level) % 2 :])

    @property
    def root(self) -> bytes:
        return self._levels[-1][0]

    def path(self, index: int) -> list[bytes]:
        """Return the hashes that lead from the leaf *index* to the root (RFC 6962, section 2.1.1)."""
        found = []
        for level in self._levels[:-1]:
            beside = index ^ 1
            if beside < len(level):
                found.append(level[beside])
            index //= 2
        return found


def leads_to(root: bytes, of: bytes, index: int, size: int, path: Sequence[bytes]) -> bool:
    """Whether *path* proves that the leaf *of* is entry *index* of *size* under *root* (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    here, last = index, size - 1
    for beside in path:
        if last == 0:
            return False
        if here % 2 or here == last:
            of = _node(beside, of)
            while here % 2 == 0 and here:
                here, last = here // 2, last // 2
        else:
            of = _node(of, beside)
        here, last = here // 2, last // 2
    return last == 0 and of == root


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()
