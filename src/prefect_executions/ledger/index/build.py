"""The builder of segments: from batches of the ledger's rows, or from older segments."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from json import loads
from math import nan
from typing import Any

import numpy as np

from prefect_executions.ledger.batch import BATCH_COLUMNS, INEXACT, PART_COLUMNS, PARTS, Batch
from prefect_executions.ledger.columns import EXECUTIONS, ColumnType
from prefect_executions.ledger.index.columns import ABSENT, Array, ColumnKind, SegmentColumn
from prefect_executions.ledger.index.encode import Coder, ColumnEntries
from prefect_executions.ledger.index.segment import (
    FIRST_KNOWN,
    NUMBER,
    ODD_IDS,
    WORDS,
    Segment,
    SegmentKeys,
    odd_ids,
    parts_of,
    value_key,
)
from prefect_executions.query.tree import Statistic

TITLE = "method_title"
FLAGS = ("starred", "recalled")
"""Truth values that are kept where they are true."""
TEXTS = (
    TITLE,
    *(c.name for c in EXECUTIONS if c.type in {ColumnType.TEXT, ColumnType.ID} and c.name != "id"),
    "experiment",
)
DIGEST_TEXTS = tuple(c.name for c in EXECUTIONS if c.type is ColumnType.DIGEST and c.name != "manifest_sha256")
"""Digests with few distinct values, kept whole; no search reads the digest of a manifest."""
INTEGERS = (
    *(
        c.name
        for c in EXECUTIONS
        if c.type not in {ColumnType.TEXT, ColumnType.ID, ColumnType.NUMBER, ColumnType.DIGEST}
    ),
    *FLAGS,
)

VALUES = ("params", "inputs")
"""The tables of named JSON values."""
SOURCES = (*VALUES, "metrics")

PART_TEXTS = {
    "tags": ("tag",),
    "notes": ("note",),
    "input_files": ("input", "name"),
    "outputs": ("path", "media_type"),
}
PART_INTEGERS = {"outputs": ("size",)}
DIGESTS = ("input_files", "outputs")
"""The tables with a digest, of which 128 bits are kept."""

TEXT_TAG, TRUTH_TAG, NUMBER_TAG, OTHER_TAG = "sbnj"
"""The first character of a word of a named value: a text, a truth value, a number that no double equals, other JSON."""


def part_key(table: str, column: str) -> str:
    """Return the key in `Segment.columns` of a column of a table with several rows per execution."""
    return f"{table}.{column}"


class SegmentBuilder:
    """The columns of the executions in batches, in memory, until `segment` orders them."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._texts = {name: _Texts() for name in (*TEXTS, *DIGEST_TEXTS)}
        self._integers = {name: array("q") for name in INTEGERS}
        self._parts = {part_key(table, column): _Texts() for table, columns in PART_TEXTS.items() for column in columns}
        self._part_rows = {table: array("I") for table in {**PART_TEXTS, **PART_INTEGERS}}
        self._part_integers = {
            part_key(table, column): array("q") for table, columns in PART_INTEGERS.items() for column in columns
        }
        self._digests = {table: bytearray() for table in DIGESTS}
        self._values = {source: _Values() for source in SOURCES}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, batch: Batch) -> None:
        """Add the executions of *batch*."""
        if not batch.executions:
            return
        columns = dict(zip(BATCH_COLUMNS, zip(*batch.executions, strict=True), strict=True))
        columns[TITLE] = tuple(map(batch.titles.__getitem__, columns["method"]))
        begin = len(self._ids)
        rows = {key: begin + index for index, key in enumerate(columns["key"])}
        self._ids.extend(columns["id"])
        for name, texts in self._texts.items():
            texts.extend(columns[name])
        for name, integers in self._integers.items():
            integers.extend(_integers(columns[name], absent=0 if name in FLAGS else None))
        for name, own in PART_COLUMNS.items():
            if batch.parts[name]:
                part = dict(zip(own, zip(*batch.parts[name], strict=True), strict=True))
                self._add_part(name, part, rows)

    def _add_part(self, name: str, part: Mapping[str, Sequence[Any]], rows: Mapping[int, int]) -> None:
        source = PARTS[name].table if name in PARTS else name
        if source == "leaves":
            for each in VALUES:
                chosen = [index for index, table in enumerate(part["source"]) if table == each]
                own = {column: [values[index] for index in chosen] for column, values in part.items()}
                if chosen:
                    self._values[each].extend(map(rows.__getitem__, own["execution"]), own["name"], *_values(own))
        elif source in self._values:
            entries = _values(part) if name in VALUES else _statistics(part) if name == "metrics" else _numbers(part)
            self._values[source].extend(map(rows.__getitem__, part["execution"]), part["name"], *entries)
        else:
            self._add_entries(name, part, rows)

    def _add_entries(self, table: str, part: Mapping[str, Sequence[Any]], rows: Mapping[int, int]) -> None:
        self._part_rows[table].extend(map(rows.__getitem__, part["execution"]))
        for column in PART_TEXTS.get(table, ()):
            self._parts[part_key(table, column)].extend(part[column])
        for column in PART_INTEGERS.get(table, ()):
            sizes = (ABSENT if value is None else value for value in part[column])
            self._part_integers[part_key(table, column)].extend(sizes)
        if table in DIGESTS:
            self._digests[table] += b"".join(map(_first_half, part["sha256"]))

    def segment(self, replaced: Iterable[str] = ()) -> Segment:
        """Return the segment of all added executions; *replaced* are the ids whose older rows are out of date."""
        size = len(self._ids)
        times = np.frombuffer(self._integers[FIRST_KNOWN], np.int64) if size else np.zeros(0, np.int64)
        order = _newest_last(times, self._ids)
        place = np.empty(size, np.uint32)
        place[order] = np.arange(size, dtype=np.uint32)
        columns = dict(self._columns(place))
        for table, rows in self._part_rows.items():
            if len(rows):
                columns |= self._part_columns(table, size, place.take(np.frombuffer(rows, np.uint32)))
        for source, values in self._values.items():
            columns |= values.columns(source, size, place)
        keys = SegmentKeys.of(self._ids).take(order)
        out_of_date = SegmentKeys.of(sorted(replaced))
        return Segment(size, keys, keys.order().astype(np.uint32), out_of_date.take(out_of_date.order()), columns)

    def _columns(self, place: Array) -> Iterator[tuple[str, SegmentColumn]]:
        size = len(place)
        odd = odd_ids(self._ids)
        if odd:
            ids = [self._ids[index] for index in odd]
            yield ODD_IDS, ColumnEntries(size, place.take(odd), np.arange(len(odd))).texts(ids)
        for name, texts in self._texts.items():
            if texts.words:
                entries, words = texts.entries(size, place)
                yield name, entries.texts([word and word.hex() for word in words] if name in DIGEST_TEXTS else words)
        for name, integers in self._integers.items():
            data = np.frombuffer(integers, np.int64) if size else np.zeros(0, np.int64)
            filled = np.flatnonzero(data != ABSENT)
            if len(filled):
                entries = ColumnEntries(size, place.take(filled), data.take(filled))
                yield name, entries.plain() if name == FIRST_KNOWN else entries.integers()

    def _part_columns(self, table: str, size: int, rows: Array) -> Iterator[tuple[str, SegmentColumn]]:
        for column in PART_TEXTS.get(table, ()):
            key = part_key(table, column)
            entries, words = self._parts[key].entries(size, rows, several=True)
            yield key, entries.texts(words)
        for column in PART_INTEGERS.get(table, ()):
            key = part_key(table, column)
            data = np.frombuffer(self._part_integers[key], np.int64)
            filled = np.flatnonzero(data != ABSENT)
            yield key, ColumnEntries(size, rows.take(filled), data.take(filled), several=True).integers()
        if table in DIGESTS:
            halves = np.frombuffer(bytes(self._digests[table]), ">u8").astype(np.uint64).reshape(-1, 2)
            order = np.argsort(rows, kind="stable")
            for index, half in enumerate(("high", "low")):
                digests: Array = np.ascontiguousarray(halves[:, index]).take(order)
                halved = SegmentColumn(ColumnKind.INT, size, digests, None, rows.take(order), several=True)
                yield part_key(table, half), halved


class _Texts:
    """The texts of one column, coded as they arrive; None has the code 0."""

    def __init__(self) -> None:
        self.words = Coder()
        self.codes = array("I")

    def extend(self, texts: Sequence[Any]) -> None:
        count = len(texts)
        if texts[0] == texts[-1] and texts.count(texts[0]) == count:  # as in most columns
            self.codes.extend(array("I", (self.words[texts[0]],)) * count)
        else:
            self.codes.extend(map(self.words.__getitem__, texts))

    def entries(self, size: int, rows: Array, *, several: bool = False) -> tuple[ColumnEntries, list[Any]]:
        words = list(self.words)
        codes = np.frombuffer(self.codes, np.uint32)
        if None in self.words:
            filled = np.flatnonzero(codes != self.words[None])
            rows, codes = rows.take(filled), codes.take(filled)
        return ColumnEntries(size, rows, codes, several=several), words


class _Values:
    """The named values of one source: each has a number, or a word that is tagged with its type, or both."""

    def __init__(self) -> None:
        self._rows, self._names = array("I"), array("I")
        self._known = Coder()
        self._words = Coder()
        self._words[None] = 0
        self._numbers: dict[str, array[float]] = {}
        self._coded: dict[str, array[int]] = {}

    def extend(
        self,
        rows: Iterable[int],
        names: Iterable[str],
        numbers: Mapping[str, Iterable[float]],
        words: Mapping[str, Iterable[str | None]],
    ) -> None:
        before = len(self._rows)
        self._rows.extend(rows)
        self._names.extend(map(self._known.__getitem__, names))
        for part, values in numbers.items():
            self._number_part(part, before).extend(values)
        for part, texts in words.items():
            self._word_part(part, before).extend(map(self._words.__getitem__, texts))

    def _number_part(self, part: str, count: int) -> array[float]:
        """Return the numbers of a part, filled up to *count* values: most parts have no value for long."""
        numbers = self._numbers.setdefault(part, array("d"))
        numbers.extend(array("d", (nan,)) * (count - len(numbers)))
        return numbers

    def _word_part(self, part: str, count: int) -> array[int]:
        coded = self._coded.setdefault(part, array("I"))
        coded.extend(array("I", (0,)) * (count - len(coded)))
        return coded

    def columns(self, source: str, size: int, place: Array) -> dict[str, SegmentColumn]:
        """Return the columns of each name."""
        columns: dict[str, SegmentColumn] = {}
        if not len(self._rows):
            return columns
        rows, names = place.take(np.frombuffer(self._rows, np.uint32)), np.frombuffer(self._names, np.uint32)
        order = np.lexsort((rows, names))
        rows = rows.take(order)
        repeated = (rows[1:] == rows[:-1]) & (names.take(order[1:]) == names.take(order[:-1]))
        if repeated.any():  # a leaf with the name of a value; the value came first
            kept = np.concatenate(([True], ~repeated))
            order, rows = order[kept], rows[kept]
        bounds = np.searchsorted(names.take(order), np.arange(len(self._known) + 1)).tolist()
        texts: list[Any] = list(self._words)
        for part in self._numbers:
            numbers = np.frombuffer(self._number_part(part, len(self._rows)), np.float64).take(order)
            for name, code in self._known.items():
                begin, end = bounds[code], bounds[code + 1]
                filled = np.flatnonzero(~np.isnan(numbers[begin:end]))
                if len(filled):
                    entries = ColumnEntries(size, rows[begin:end].take(filled), numbers[begin:end].take(filled))
                    columns[value_key(source, name, part)] = entries.floats()
        for part in self._coded:
            codes = np.frombuffer(self._word_part(part, len(self._rows)), np.uint32).take(order)
            for name, code in self._known.items():
                begin, end = bounds[code], bounds[code + 1]
                filled = np.flatnonzero(codes[begin:end])
                if len(filled):
                    entries = ColumnEntries(size, rows[begin:end].take(filled), codes[begin:end].take(filled))
                    columns[value_key(source, name, part)] = entries.texts(texts)
        return columns


def _newest_last(times: Array, ids: Sequence[str]) -> Array:
    """Return the order by time, then id."""
    order = np.argsort(times, kind="stable")
    ordered = times.take(order)
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        ends = np.flatnonzero(np.diff(ordered, append=ordered[-1:] + 1)) + 1
        for begin in np.unique(np.searchsorted(ends, same, side="right")).tolist():
            first, last = int(ends[begin - 1]) if begin else 0, int(ends[begin])
            order[first:last] = sorted(order[first:last].tolist(), key=ids.__getitem__)
    return order


def _integers(values: Sequence[Any], *, absent: int | None) -> array[int]:
    """Return *values* with `ABSENT` for those that are *absent* or None."""
    if values.count(absent) == len(values):
        return array("q", (ABSENT,)) * len(values)
    try:
        numbers = array("q", values)
    except TypeError:  # a value is None
        numbers = array("q", [ABSENT if value is None else value for value in values])
    return numbers if absent is None else array("q", [ABSENT if value == absent else value for value in numbers])


def _first_half(sha256: bytes) -> bytes:
    return sha256[:16]


_Columns = dict[str, list[Any]]


def _numbers(part: Mapping[str, Sequence[Any]]) -> tuple[_Columns, _Columns]:
    """Return the numbers of values that are plain numbers, or the last values of metrics, and their exact texts."""
    if "last" not in part:
        return {NUMBER: list(part["number"])}, {}
    last, exact = part["last"], part["last_exact"]
    numbers = [nan if value is None else value for value in last]
    words = {WORDS: [text and NUMBER_TAG + text for text in exact]} if any(exact) else {}
    return {NUMBER: numbers}, words


def _values(part: Mapping[str, Sequence[Any]]) -> tuple[_Columns, _Columns]:
    """Return the numbers and the tagged words of the rows of a table of named values."""
    numbers = [nan if number is None else number for number in part["number"]]
    columns = (part[column] for column in ("json", "number", "text", "truth"))
    return {NUMBER: numbers}, {WORDS: [_word(*row) for row in zip(*columns, strict=True)]}


def _statistics(part: Mapping[str, Sequence[Any]]) -> tuple[_Columns, _Columns]:
    """Return the last values, and the other statistics where they differ from these."""
    last, last_exact = part["last"], part["last_exact"]
    numbers, words = _numbers(part)
    for statistic in Statistic:
        if statistic is Statistic.LAST:
            continue
        number, word = parts_of(statistic)
        values, exacts = part[statistic], part[f"{statistic}_exact"]
        numbers[number] = [
            nan if value is None or value == other else value for value, other in zip(values, last, strict=True)
        ]
        if any(exacts) or any(last_exact) or None in values:
            words[word] = [None] * len(values)
            pairs = zip(values, exacts, last, last_exact, strict=True)
            for index, (value, exact, _, other_exact) in enumerate(pairs):
                exact = exact or ("NaN" if value is None else None)  # noqa: PLW2901
                if exact != other_exact:
                    words[word][index] = NUMBER_TAG + exact if exact else None
                    numbers[number][index] = nan if value is None else value
    return numbers, words


def _word(json: str | None, number: float | None, text: str | None, truth: object) -> str | None:
    if truth is not None:
        return TRUTH_TAG + ("1" if truth else "0")
    if number is not None:
        if text is not None:
            return NUMBER_TAG + text
        return _inexact(json or "0") if abs(number) >= INEXACT else None
    if text is not None:
        return TEXT_TAG + text
    return None if json == "null" else OTHER_TAG


def _inexact(json: str) -> str | None:
    """Return the word of an integer that is so large that a double may differ from it, or None."""
    value = loads(json)
    if isinstance(value, dict):  # a number of a Python type that JSON lacks
        value = value.get("value")
    return NUMBER_TAG + str(value) if isinstance(value, int) and abs(value) >= INEXACT else None
