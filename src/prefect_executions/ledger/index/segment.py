"""A segment of the column index: some executions as columns, ordered by first known time and id.

An id is a key of 128 bits: the UUID itself, or else a digest of the text, which the column
`ODD_IDS` keeps. A segment also lists the keys that it replaces in older segments.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

import numpy as np

from prefect_executions.ledger.index.columns import Array, Mask, SegmentColumn
from prefect_executions.query.tree import Statistic

ODD_IDS = "odd_ids"
"""The column of the ids that are not a UUID in its usual form, such as those of a second generation."""

FIRST_KNOWN = "first_known"

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HALF = 1 << 64
_SEPARATOR = "\0"

NUMBER, WORDS = "number", "words"
"""The parts of a named value: its number, and every other value as a tagged word."""


class SegmentKeys(NamedTuple):
    """Ids as keys of 128 bits: their upper and lower halves."""

    high: Array
    low: Array

    @classmethod
    def of(cls, ids: Iterable[str]) -> SegmentKeys:
        """Return the keys of *ids*."""
        digits = list(ids)
        for place in odd_ids(digits):
            digits[place] = blake2b(digits[place].encode(), digest_size=16).hexdigest()
        whole = bytes.fromhex("".join(digits).replace("-", ""))
        halves = np.frombuffer(whole, ">u8").astype(np.uint64).reshape(-1, 2)
        return cls(np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1]))

    def take(self, places: Array) -> SegmentKeys:
        return SegmentKeys(self.high.take(places), self.low.take(places))

    def order(self) -> Array:
        """Return the order that sorts the keys."""
        return np.lexsort((self.low, self.high))

    def beginning(self, digits: str) -> Mask:
        """Return for each key whether its 32 hexadecimal digits begin with *digits*; further digits are ignored."""
        low, high = (int((digits + fill * 32)[:32], 16) for fill in "0f")
        first, last = (np.uint64(bound >> 64) for bound in (low, high))
        if first != last:
            return _between(self.high, first, last)
        first_low, last_low = (np.uint64(bound & _HALF - 1) for bound in (low, high))
        return _between(self.high, first, last) & _between(self.low, first_low, last_low)

    def text(self, row: int) -> str:
        """Return the UUID that is the key of *row*."""
        return str(UUID(int=int(self.high[row]) * _HALF + int(self.low[row])))


@dataclass(frozen=True, eq=False)
class Segment:
    """Executions as columns; its row numbers ascend with the first known time, then the id."""

    size: int
    keys: SegmentKeys
    by_key: Array
    """The rows, ordered by key."""
    replaced: SegmentKeys
    """The executions that changed since the older segments, sorted; their rows in these are out of date."""
    columns: Mapping[str, SegmentColumn]

    def id(self, row: int) -> str:
        """Return the id of the execution in *row*."""
        odd = self.columns.get(ODD_IDS)
        return (odd.value(row) if odd else None) or self.keys.text(row)

    def oldest(self) -> Segment:
        """Return the segment as the oldest one, which replaces nothing."""
        return replace(self, replaced=SegmentKeys.of(()))

    def rows_of(self, keys: SegmentKeys) -> Array:
        """Return the row of each of *keys*, or -1."""
        low, high = np.zeros(len(keys.high), np.int64), np.full(len(keys.high), self.size, np.int64)
        if not self.size or not len(keys.high):
            return np.full(len(keys.high), -1, np.int64)
        for _ in range(self.size.bit_length()):  # a binary search of all keys at once
            middle = np.minimum((low + high) // 2, self.size - 1)
            found = self.keys.take(self.by_key.take(middle))
            less = (found.high < keys.high) | ((found.high == keys.high) & (found.low < keys.low))
            low, high = np.where(less & (low < high), middle + 1, low), np.where(less | (low >= high), high, middle)
        rows = self.by_key.take(np.minimum(low, self.size - 1)).astype(np.int64)
        found = self.keys.take(rows)
        return np.where((found.high == keys.high) & (found.low == keys.low), rows, -1)

    def mask_of(self, ids: Sequence[str]) -> Mask:
        """Return for each row whether its execution is one of *ids*."""
        mask = np.zeros(self.size, np.bool_)
        rows = self.rows_of(SegmentKeys.of(ids))
        mask[rows[rows >= 0]] = True
        return mask

    def position(self, first_known: int, execution_id: str) -> int:
        """Return how many rows sort before an execution, which need not be here."""
        if not self.size:
            return 0
        times = self.columns[FIRST_KNOWN].data
        begin, end = (int(np.searchsorted(times, first_known, side=side)) for side in ("left", "right"))
        return begin + bisect_left(range(begin, end), execution_id, key=self.id)

    def named(self, source: str, name: str, part: str) -> SegmentColumn | None:
        """Return a part of the values with a name, such as the maximum of a metric, or None if there are none."""
        return self.columns.get(value_key(source, name, part))

    @cached_property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the values of each source, sorted."""
        found: dict[str, set[str]] = {}
        for key in self.columns:
            source, separator, rest = key.partition(_SEPARATOR)
            if separator:
                found.setdefault(source, set()).add(rest.partition(_SEPARATOR)[2])
        return {source: tuple(sorted(names)) for source, names in found.items()}


def value_key(source: str, name: str, part: str) -> str:
    """Return the key in `Segment.columns` of a *part* of the values with a name; no name contains a NUL."""
    return f"{source}{_SEPARATOR}{part}{_SEPARATOR}{name}"


def parts_of(statistic: Statistic) -> tuple[str, str]:
    """Return the parts with the numbers and the words of a statistic; only the last value has the plain names."""
    if statistic is Statistic.LAST:
        return NUMBER, WORDS
    return f"{statistic}.{NUMBER}", f"{statistic}.{WORDS}"


def odd_ids(ids: Iterable[str]) -> list[int]:
    """Return the places of the ids that are not a UUID in its usual form."""
    return [place for place, match in enumerate(map(_UUID.fullmatch, ids)) if match is None]


def _between(halves: Array, first: np.uint64, last: np.uint64) -> Mask:
    return np.greater_equal(halves, first) & np.less_equal(halves, last)
