"""Typed columns over the rows of a segment: plain numbers, or codes of sorted distinct words.

A column has at most one entry per row, or several (tags, files). A dense column has exactly
one entry for each row, and a code of 0, NaN or `ABSENT` where a row has no value. A sparse
column has the row number of each entry, in ascending order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

ABSENT = -(2**63)
"""The entry of a dense column of integers where a row has no value; no time and no size is so small."""

MOST_RANGES = 4
"""More ranges of codes than this are looked up one by one instead of compared."""


class ColumnKind(StrEnum):
    """What the values of a column are."""

    TEXT = "text"
    FLOAT = "float"
    INT = "int"


class TextWords:
    """Distinct texts, sorted by code point, in one block of UTF-8: each word after a NUL, which no word contains.

    If a word changes when its case is folded, a second block has the folded words in the same order.
    """

    def __init__(self, blob: Array, starts: Array, folded: tuple[Array, Array] | None) -> None:
        self.blob, self.starts, self.folded = blob, starts, folded

    @classmethod
    def of(cls, words: Iterable[str]) -> TextWords:
        """Return the block of *words*, which are sorted and distinct."""
        words = list(words)
        folded = [word.casefold() for word in words]
        return cls(*_block(words), _block(folded) if folded != words else None)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> str:
        start, end = int(self.starts[index]), int(self.starts[index + 1]) - 1
        return self.blob[start:end].tobytes().decode()

    def all(self) -> list[str]:
        """Return all words."""
        return self.blob.tobytes().decode().split("\0")[1:] if len(self) else []

    def position(self, word: str) -> int:
        """Return how many words sort before *word*."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self[middle] < word:
                low = middle + 1
            else:
                high = middle
        return low

    def containing(self, needle: str) -> Array:
        """Return the ascending indexes of the words that contain *needle*, which is casefolded, when folded.

        A NUL at its beginning stands for the beginning of the word, a NUL at its end for the end; not both.
        """
        blob, starts = self.folded or (self.blob, self.starts)
        sought = needle.encode()
        pieces = (blob.tobytes() + b"\0").split(sought)
        lengths = np.fromiter(map(len, pieces[:-1]), np.int64, len(pieces) - 1)
        ends = np.cumsum(lengths + len(sought)) - 1
        return np.unique(np.searchsorted(starts, ends, side="right") - 1)

    def where(self, matches: Callable[[str], bool], among: Array | None = None) -> Mask:
        """Return for each word whether *matches* accepts it; words that are not *among* the indexes are rejected."""
        if among is None:
            return np.fromiter(map(matches, self.all()), np.bool_, len(self))
        found = np.zeros(len(self), np.bool_)
        for index in among.tolist():
            found[index] = matches(self[index])
        return found


Words = TextWords | Array
"""The sorted distinct values of a coded column; code *n* is the word *n - 1*."""


@dataclass(frozen=True, slots=True, eq=False)
class SegmentColumn:
    """A column of a segment with *size* rows."""

    kind: ColumnKind
    size: int
    data: Array
    """The value of each entry, or its code if the column has *words*."""
    words: Words | None = None
    rows: Array | None = None
    """The row of each entry; None if the column is dense."""
    several: bool = False
    """Whether a row may have several entries."""

    @property
    def coded(self) -> bool:
        return self.words is not None

    @property
    def texts(self) -> TextWords:
        """The words of a column of texts."""
        assert isinstance(self.words, TextWords)  # noqa: S101  for the type checker
        return self.words

    @property
    def numbers(self) -> Array:
        """The distinct values of a coded column of numbers, or the value of each entry."""
        assert not isinstance(self.words, TextWords)  # noqa: S101  for the type checker
        return self.data if self.words is None else self.words

    def filled(self) -> Mask:
        """Return for each entry whether it has a value."""
        if self.rows is not None:
            return np.ones(len(self.data), np.bool_)
        return self.have_value(self.data)

    def have_value(self, data: Array) -> Mask:
        """Return for each of some *data* of a dense column whether it is a value."""
        if self.coded:
            return np.not_equal(data, 0)
        present: Mask = ~np.isnan(data) if self.kind is ColumnKind.FLOAT else data != ABSENT
        return present

    def spread(self, entries: Mask) -> Mask:
        """Return for each row whether one of its *entries* is True."""
        if self.rows is None:
            return entries
        mask = np.zeros(self.size, np.bool_)
        mask[self.rows.take(np.flatnonzero(entries))] = True
        return mask

    def present(self) -> Mask:
        """Return for each row whether it has a value."""
        return self.spread(self.filled())

    def where_words(self, chosen: Mask) -> Mask:
        """Return for each row of a coded column whether one of its words is *chosen*."""
        return self.spread(_coded_in(self.data, chosen))

    def where(self, test: Callable[[Array], Mask]) -> Mask:
        """Return for each row of a column of numbers whether *test* accepts a value, which never sees `ABSENT`."""
        if self.coded:
            return self.where_words(test(self.numbers))
        accepted = test(self.data)
        if self.kind is ColumnKind.INT and self.rows is None:
            accepted &= self.data != ABSENT
        return self.spread(accepted)

    def word(self, code: int) -> Any:
        """Return the word of a *code* of at least 1, as a Python value."""
        words = self.words
        if isinstance(words, TextWords):
            return words[code - 1]
        assert words is not None  # noqa: S101  for the type checker
        return words[code - 1].item()

    def value(self, row: int) -> Any:
        """Return the value of a *row*, the first one if it has several, or None."""
        index = row
        if self.rows is not None:
            index = int(np.searchsorted(self.rows, row))
            if index >= len(self.rows) or self.rows[index] != row:
                return None
        item = self.data[index]
        if self.coded:
            return self.word(int(item)) if item else None
        if self.kind is ColumnKind.FLOAT:
            return None if np.isnan(item) else float(item)
        return None if item == ABSENT else int(item)

    def values_of(self, row: int) -> list[Any]:
        """Return all values of a *row* of a column with several."""
        assert self.rows is not None  # noqa: S101  for the type checker
        begin, end = (int(np.searchsorted(self.rows, row, side=side)) for side in ("left", "right"))
        items = self.data[begin:end].tolist()
        return [self.word(item) for item in items] if self.coded else items

    def at(self, rows: Array) -> tuple[Array, Array]:
        """Return the places in *rows*, which are ascending, that have a value, and the data of these values.

        A row with several entries has only the first.
        """
        if self.rows is None:
            data = self.data.take(rows)
            places = np.flatnonzero(self.have_value(data))
            return (places, data) if len(places) == len(data) else (places, data.take(places))
        if len(rows) < len(self.rows) // 8:
            index = np.searchsorted(self.rows, rows)
            index[index == len(self.rows)] = 0
            places = np.flatnonzero(self.rows.take(index) == rows) if len(self.rows) else index[:0]
            return places, self.data.take(index.take(places))
        where = np.zeros(self.size, np.int32)
        where[rows] = np.arange(1, len(rows) + 1, dtype=np.int32)
        found: Array = where.take(self.rows)
        entries = np.flatnonzero(found)
        places = found.take(entries).astype(np.int64) - 1
        if self.several and len(places):
            first = np.concatenate(([True], places[1:] != places[:-1]))
            places, entries = places[first], entries[first]
        return places, self.data.take(entries)


def smallest_unsigned(most: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest unsigned type that holds *most*."""
    return np.uint8 if most < 1 << 8 else np.uint16 if most < 1 << 16 else np.uint32


def _block(words: list[str]) -> tuple[Array, Array]:
    encoded = [word.encode() for word in words]
    blob = np.frombuffer(b"".join(b"\0" + word for word in encoded), np.uint8)
    starts = np.ones(len(words) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(words)) + 1, out=starts[1:])
    starts[1:] += 1
    return blob, starts.astype(np.uint32 if len(blob) < 1 << 31 else np.int64)


def _coded_in(codes: Array, chosen: Mask) -> Mask:
    """Return for each code whether its word is *chosen*; a code of 0 has no word."""
    padded = np.zeros(len(chosen) + 2, np.int8)
    padded[1:-1] = chosen
    edges = np.diff(padded)
    begins, ends = np.flatnonzero(edges == 1) + 1, np.flatnonzero(edges == -1) + 1
    if len(begins) > MOST_RANGES:
        return np.concatenate(([False], chosen)).take(codes)
    found = np.zeros(len(codes), np.bool_)
    last = len(chosen) + 1
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        if end - begin == 1:
            part = codes == codes.dtype.type(begin)
        elif end == last:
            part = codes >= codes.dtype.type(begin)
        else:
            part = (codes - codes.dtype.type(begin)) < codes.dtype.type(end - begin)  # one comparison: unsigned
        found |= part
    return found
