"""The encoding of values as columns: coded or plain, dense or sparse, whichever is smaller and quicker to search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from prefect_executions.ledger.index.columns import (
    ABSENT,
    Array,
    ColumnKind,
    SegmentColumn,
    TextWords,
    smallest_unsigned,
)

DENSE = 4
"""A column is dense if at least one row in so many has a value."""

MOST_CODED = 1 << 16
"""Numbers with at most so many distinct values are coded."""

_REPEATS = 4  # numbers are coded if each distinct value occurs so often on average


class Coder(dict[Any, int]):
    """Codes of distinct values in the order of their arrival, from 0."""

    def __missing__(self, value: Any) -> int:
        code = self[value] = len(self)
        return code


class ColumnEntries:
    """The entries of one column: the row and the value of each, or its code in a list of words."""

    def __init__(self, size: int, rows: Array, data: Array, *, several: bool = False) -> None:
        self.size, self.rows, self.data, self.several = size, rows, data, several

    def sorted(self) -> Self:
        """Return the entries in the order of their rows; equal entries of a row are one."""
        rows, data = self.rows, self.data
        if self.several:
            order = np.lexsort((data, rows))
            rows, data = rows.take(order), data.take(order)
            if len(rows):
                new = np.concatenate(([True], (rows[1:] != rows[:-1]) | (data[1:] != data[:-1])))
                rows, data = rows[new], data[new]
        elif len(rows) > 1 and (rows[1:] < rows[:-1]).any():
            order = np.argsort(rows, kind="stable")
            rows, data = rows.take(order), data.take(order)
        return type(self)(self.size, rows, data, several=self.several)

    def texts(self, words: Sequence[str]) -> SegmentColumn:
        """Return a column of texts; the data are indexes in *words*."""
        used, codes = np.unique(self.data, return_inverse=True)
        chosen = [words[index] for index in used.tolist()]
        order = sorted(range(len(chosen)), key=chosen.__getitem__)
        rank = np.empty(len(chosen), np.uint32)
        rank[order] = np.arange(1, len(chosen) + 1, dtype=np.uint32)
        return self._coded(ColumnKind.TEXT, rank.take(codes), TextWords.of(chosen[index] for index in order))

    def floats(self) -> SegmentColumn:
        """Return a column of the numbers in the data; none is NaN."""
        return self._numbers(ColumnKind.FLOAT, np.nan, np.float64)

    def integers(self) -> SegmentColumn:
        """Return a column of the integers in the data; none is `ABSENT`."""
        return self._numbers(ColumnKind.INT, ABSENT, np.int64)

    def plain(self) -> SegmentColumn:
        """Return a column of integers as they are, in the order of their rows; entries of a row keep their order."""
        order = np.argsort(self.rows, kind="stable")
        rows = None if len(order) == self.size and not self.several else self.rows.take(order).astype(np.uint32)
        return SegmentColumn(ColumnKind.INT, self.size, self.data.take(order), None, rows, self.several)

    def _numbers(self, kind: ColumnKind, absent: float, type_: type[np.generic]) -> SegmentColumn:
        data = self.data.astype(type_, copy=False)
        if len(np.unique(data[: 16 * MOST_CODED : 16])) <= len(data) // 16 // 2 or len(data) < MOST_CODED:
            distinct, codes = np.unique(data, return_inverse=True)
            if len(distinct) < MOST_CODED and len(distinct) * _REPEATS <= len(data):
                return self._coded(kind, codes + 1, distinct)
        entries = type(self)(self.size, self.rows, data, several=self.several).sorted()
        if entries.several or len(entries.rows) * DENSE < entries.size:
            return SegmentColumn(kind, self.size, entries.data, None, entries.rows.astype(np.uint32), self.several)
        if len(entries.rows) == entries.size:
            return SegmentColumn(kind, self.size, entries.data)
        dense = np.full(self.size, absent, type_)
        dense[entries.rows] = entries.data
        return SegmentColumn(kind, self.size, dense)

    def _coded(self, kind: ColumnKind, codes: Array, words: TextWords | Array) -> SegmentColumn:
        type_ = smallest_unsigned(len(words) + 1)
        entries = type(self)(self.size, self.rows, codes.astype(type_), several=self.several).sorted()
        if entries.several or len(entries.rows) * DENSE < entries.size:
            return SegmentColumn(kind, self.size, entries.data, words, entries.rows.astype(np.uint32), self.several)
        dense = np.zeros(self.size, type_)
        dense[entries.rows] = entries.data
        return SegmentColumn(kind, self.size, dense, words)


def entries_of(column: SegmentColumn) -> tuple[Array, Array]:
    """Return the rows of a column's entries that have a value, and their data, as codes if it is coded."""
    if column.rows is not None:
        return column.rows, column.data
    rows = np.flatnonzero(column.filled())
    return rows, column.data.take(rows)
