"""Sort keys: the ranks of a segment's rows by a field or a named value, and the place of a cursor among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from decimal import Decimal
from math import inf, isinf
from typing import Any, NamedTuple

import numpy as np

from prefect_executions.ledger.index.access import (
    Value,
    ValueLayer,
    field_columns,
    is_nan,
    layered_value,
    untagged,
    value_layers,
)
from prefect_executions.ledger.index.columns import Array, ColumnKind, SegmentColumn
from prefect_executions.ledger.index.order import Bound, Ranked
from prefect_executions.ledger.index.segment import ODD_IDS, Segment, SegmentKeys
from prefect_executions.query.fields import BY_NAME
from prefect_executions.query.fields import Kind as FieldKind
from prefect_executions.query.match import version_key
from prefect_executions.query.tree import FieldTarget, Target

_NUMBERS, _TEXTS, _TRUTHS = 3, 2, 1
"""The order of the types of values, the largest first."""


class SortKey(NamedTuple):
    """A field or named value, and the direction in which it sorts; rows without a value come last in both."""

    target: Target
    descending: bool


def rank_value(value: Value | None) -> tuple[int, Any]:
    """Return what sorts values of any segment as the ranks of one segment do; the larger comes first."""
    if value is None:
        return 0, 0
    if isinstance(value, bool):
        return _TRUTHS, value
    return (_TEXTS, value) if isinstance(value, str) else (_NUMBERS, value)


def rank_text(target: Target) -> Callable[[str], Any]:
    """Return what a text of *target* is sorted by: a version by its numbers."""
    is_version = isinstance(target, FieldTarget) and BY_NAME[target.name].kind is FieldKind.VERSION
    return _version_rank if is_version else str


def _version_rank(text: str) -> tuple[Any, str]:
    return version_key(text), text


class KeyReader(ABC):
    """A sort key on one segment."""

    def __init__(self, *, descending: bool) -> None:
        self._descending = descending

    @abstractmethod
    def value(self, row: int) -> Value | None:
        """Return the value of a row."""

    @abstractmethod
    def ranked(self, rows: Array) -> Ranked:
        """Return the ranks of *rows* in descending order."""

    @abstractmethod
    def place(self, value: Value) -> tuple[float, ...]:
        """Return the ranks of *value*, which need not occur; between two ranks if it does not."""

    def key(self, rows: Array) -> Ranked:
        """Return the ranks of *rows*; the larger ones come first."""
        ranked = self.ranked(rows)
        if self._descending:
            return ranked
        return Ranked(tuple(_mirrored(ranks, ranks.dtype) for ranks in ranked.ranks), ranked.present)

    def bound(self, value: Value | None) -> Bound:
        """Return where *value* is among the ranks."""
        if value is None:
            return Bound(None)
        place = self.place(value)
        if self._descending:
            return Bound(place)
        types = [ranks.dtype for ranks in self.ranked(np.zeros(0, np.int64)).ranks]
        return Bound(tuple(_mirrored(rank, type_) for rank, type_ in zip(place, types, strict=True)))


def key_reader(segment: Segment, key: SortKey, cursor: Value | None = None) -> KeyReader:
    """Return the reader of *key* on *segment*, for a comparison with the value of a *cursor* too."""
    if isinstance(key.target, FieldTarget):
        if key.target.name == "id":
            return _IdReader(segment, descending=key.descending)
        return _FieldReader(segment, key.target, descending=key.descending)
    layers = value_layers(segment, key.target)
    if not _is_double(cursor) or any(layer.words for layer in layers) or len(layers) != 1:
        return _ValueReader(layers, descending=key.descending)
    return _NumberReader(layers[0].numbers, descending=key.descending)


class _FieldReader(KeyReader):
    """A field: all values have one type."""

    def __init__(self, segment: Segment, target: FieldTarget, *, descending: bool) -> None:
        super().__init__(descending=descending)
        self._column = next(iter(field_columns(segment, target.name)), None)
        self._text_key = rank_text(target)
        self._order: list[str] = []
        self._rank: Array | None = None
        if self._column and self._column.kind is ColumnKind.TEXT and self._text_key is not str:
            words = self._column.texts.all()
            self._order = sorted(words, key=self._text_key)
            place = {word: number for number, word in enumerate(self._order, 1)}
            self._rank = np.array([0, *(place[word] for word in words)], np.int64)

    def value(self, row: int) -> Value | None:
        value: Value | None = self._column.value(row) if self._column else None
        return value

    def ranked(self, rows: Array) -> Ranked:
        if self._column is None:
            return _all_missing(rows)
        if self._rank is None and self._column.kind is not ColumnKind.TEXT:
            return _ranked_numbers(self._column, rows)
        places, data = self._column.at(rows)
        return _spread(len(rows), places, data if self._rank is None else self._rank.take(data))

    def place(self, value: Value) -> tuple[float, ...]:
        if self._column is None or self._column.kind is not ColumnKind.TEXT:
            return (value,) if isinstance(value, int) else (0,)
        text = str(value)
        if self._rank is not None:
            position = bisect_left(self._order, self._text_key(text), key=self._text_key)
            found = position < len(self._order) and self._order[position] == text
        else:
            words = self._column.texts
            position = words.position(text)
            found = position < len(words) and words[position] == text
        return (position + 1 if found else position + 0.5,)


class _IdReader(KeyReader):
    """The id."""

    def __init__(self, segment: Segment, *, descending: bool) -> None:
        super().__init__(descending=descending)
        self._segment = segment
        self._sorted = sorted(map(segment.id, range(segment.size))) if ODD_IDS in segment.columns else None

    def value(self, row: int) -> str:
        return self._segment.id(row)

    def ranked(self, rows: Array) -> Ranked:
        if self._sorted is None:
            return Ranked(tuple(self._segment.keys.take(rows)), None)
        ranks = [bisect_left(self._sorted, self._segment.id(row)) for row in rows.tolist()]
        return Ranked((np.array(ranks, np.int64),), None)

    def place(self, value: Value) -> tuple[float, ...]:
        if self._sorted is None:
            high, low = SegmentKeys.of([str(value)])
            return int(high[0]), int(low[0])
        return (bisect_left(self._sorted, str(value)) - (0 if value in self._sorted else 0.5),)


class _NumberReader(KeyReader):
    """A named value that is always a double."""

    def __init__(self, numbers: SegmentColumn | None, *, descending: bool) -> None:
        super().__init__(descending=descending)
        self._numbers = numbers

    def value(self, row: int) -> Value | None:
        value: float | None = self._numbers.value(row) if self._numbers else None
        return value

    def ranked(self, rows: Array) -> Ranked:
        if self._numbers is None:
            return _all_missing(rows)
        return _ranked_numbers(self._numbers, rows)

    def place(self, value: Value) -> tuple[float, ...]:
        return (_double(value)[0],)


class _ValueReader(KeyReader):
    """A named value of any types, from several layers: ranked by type, by double or word, by what the double lost."""

    def __init__(self, layers: Sequence[ValueLayer], *, descending: bool) -> None:
        super().__init__(descending=descending)
        self._layers = layers
        words = {word for layer in layers if layer.words for word in layer.words.texts.all()}
        self._texts = sorted(value for value in map(untagged, words) if isinstance(value, str))
        self._tables = [self._table(layer.words) if layer.words else None for layer in layers]

    def _table(self, words: SegmentColumn) -> Array:
        table = np.zeros((3, len(words.texts) + 1))
        for code, word in enumerate(words.texts.all(), 1):
            value = untagged(word)
            if value is not None and not is_nan(value):
                table[:, code] = self.place(value)
        return table

    def value(self, row: int) -> Value | None:
        value = layered_value(self._layers, row)
        return None if value is not None and is_nan(value) else value

    def ranked(self, rows: Array) -> Ranked:
        ranks = np.zeros((3, len(rows)))
        for layer, table in reversed(list(zip(self._layers, self._tables, strict=True))):
            if layer.numbers:
                places, data = layer.numbers.at(rows)
                if layer.numbers.coded:
                    data = layer.numbers.numbers.take(data.astype(np.int64) - 1)
                ranks[0, places], ranks[1, places], ranks[2, places] = _NUMBERS, data, 0
            if layer.words and table is not None:
                places, data = layer.words.at(rows)
                ranks[:, places] = table[:, data]
        return Ranked((ranks[0], ranks[1], ranks[2]), ranks[0] > 0)

    def place(self, value: Value) -> tuple[float, ...]:
        if isinstance(value, bool):
            return _TRUTHS, float(value), 0.0
        if isinstance(value, str):
            position = bisect_left(self._texts, value)
            found = position < len(self._texts) and self._texts[position] == value
            return _TEXTS, position if found else position - 0.5, 0.0
        return _NUMBERS, *_double(value)


def _is_double(cursor: Value | None) -> bool:
    if cursor is None:
        return True
    return not isinstance(cursor, bool | str) and not _double(cursor)[1]


def _double(value: Value) -> tuple[float, float]:
    """Return the double that is nearest to a number, and how much the number is larger."""
    assert not isinstance(value, str)  # noqa: S101  for the type checker
    try:
        double = float(value)
    except OverflowError:
        return (inf, -1.0) if value > 0 else (-inf, 1.0)
    if isinstance(value, float):
        return double, 0.0
    if isinf(double):
        return double, 0.0 if isinstance(value, Decimal) and value.is_infinite() else -1.0 if double > 0 else 1.0
    return double, float(Decimal(value) - Decimal(double))


def _ranked_numbers(column: SegmentColumn, rows: Array) -> Ranked:
    """Return the numbers of *rows*; a dense column needs no other copy of them."""
    if column.rows is None and not column.coded:
        numbers = column.data.take(rows)
        present = column.have_value(numbers)
        return Ranked((numbers,), None if present.all() else present)
    places, data = column.at(rows)
    if column.coded:
        data = column.numbers.take(data.astype(np.int64) - 1)
    return _spread(len(rows), places, data)


def _spread(size: int, places: Array, data: Array) -> Ranked:
    if len(places) == size:
        return Ranked((data,), None)
    ranks = np.zeros(size, data.dtype)
    ranks[places] = data
    present = np.zeros(size, np.bool_)
    present[places] = True
    return Ranked((ranks,), present)


def _all_missing(rows: Array) -> Ranked:
    return Ranked((np.zeros(len(rows)),), np.zeros(len(rows), np.bool_))


def _mirrored(ranks: Any, type_: np.dtype[Any]) -> Any:
    """Return ranks in the reverse order; an unsigned or signed integer has no overflow."""
    if type_.kind == "u":
        return np.iinfo(type_).max - ranks
    return -1 - ranks if type_.kind == "i" else -ranks
