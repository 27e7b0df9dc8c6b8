"""The merge of segments into one, column by column, without the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefect_executions.ledger.index.columns import Array, ColumnKind, Mask, SegmentColumn, TextWords
from prefect_executions.ledger.index.encode import Coder, ColumnEntries, entries_of
from prefect_executions.ledger.index.segment import FIRST_KNOWN, Segment, SegmentKeys


class LiveSegment(NamedTuple):
    """A segment, and which of its rows are up to date; None if all are."""

    segment: Segment
    live: Mask | None

    @property
    def total(self) -> int:
        """How many of its rows are up to date."""
        return self.segment.size if self.live is None else int(np.count_nonzero(self.live))


class _Source(NamedTuple):
    """A segment of a merge, and for each of its rows the row in the result, or -1."""

    segment: Segment
    place: Array
    whole: bool


def merged(segments: Sequence[LiveSegment]) -> Segment:
    """Return one segment of the live rows of *segments*, which are ordered from old to new."""
    sources = _placed(segments)
    size = sum(part.total for part in segments)
    keys = [_compact(source, source.segment.keys.high) for source in sources]
    low = [_compact(source, source.segment.keys.low) for source in sources]
    places = np.concatenate([_compact(source, source.place) for source in sources])
    order = np.argsort(places)
    joined = SegmentKeys(np.concatenate(keys).take(order), np.concatenate(low).take(order))
    names = sorted({name for source in sources for name in source.segment.columns})
    columns = {}
    for name in names:
        column = _column(name, sources, size)
        if column is not None:
            columns[name] = column
    halves = zip(*(part.segment.replaced for part in segments), strict=True)
    replaced = SegmentKeys(*map(np.concatenate, halves))
    replaced = replaced.take(replaced.order())
    new = np.ones(len(replaced.high), np.bool_)
    new[1:] = (replaced.high[1:] != replaced.high[:-1]) | (replaced.low[1:] != replaced.low[:-1])
    return Segment(size, joined, joined.order().astype(np.uint32), replaced.take(np.flatnonzero(new)), columns)


def _placed(segments: Sequence[LiveSegment]) -> list[_Source]:
    """Return the segments with the place of each live row by its first known time, then its id."""
    live = [np.arange(part.segment.size) if part.live is None else np.flatnonzero(part.live) for part in segments]
    times = np.concatenate(
        [
            part.segment.columns[FIRST_KNOWN].data.take(rows) if part.segment.size else np.zeros(0, np.int64)
            for part, rows in zip(segments, live, strict=True)
        ]
    )
    order = np.argsort(times, kind="stable")
    ordered = times.take(order)
    number = np.concatenate([np.full(len(rows), index) for index, rows in enumerate(live)])
    row = np.concatenate(live)

    def id_of(index: int) -> str:
        return segments[int(number[index])].segment.id(int(row[index]))

    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        ends = np.flatnonzero(np.diff(ordered, append=ordered[-1:] + 1)) + 1
        for group in np.unique(np.searchsorted(ends, same, side="right")).tolist():
            first, last = int(ends[group - 1]) if group else 0, int(ends[group])
            members = order[first:last]
            if len(np.unique(number.take(members))) > 1:
                order[first:last] = sorted(members.tolist(), key=id_of)
    place = np.empty(len(times), np.int64)
    place[order] = np.arange(len(times))
    sources, begin = [], 0
    for part, rows in zip(segments, live, strict=True):
        whole = np.full(part.segment.size, -1, np.int64)
        whole[rows] = place[begin : begin + len(rows)]
        sources.append(_Source(part.segment, whole, part.live is None))
        begin += len(rows)
    return sources


def _compact(source: _Source, data: Array) -> Array:
    return data if source.whole else data.take(np.flatnonzero(source.place >= 0))


def _column(name: str, sources: Sequence[_Source], size: int) -> SegmentColumn | None:
    parts = [(source, source.segment.columns[name]) for source in sources if name in source.segment.columns]
    first = parts[0][1]
    coder = Coder()
    rows, data = [], []
    for source, column in parts:
        entry_rows, values = entries_of(column)
        places = source.place.take(entry_rows)
        if not source.whole:
            kept = np.flatnonzero(places >= 0)
            places, values = places.take(kept), values.take(kept)
        if isinstance(column.words, TextWords):
            codes = np.fromiter(map(coder.__getitem__, column.words.all()), np.uint32, len(column.words))
            values = codes.take(values.astype(np.int64) - 1)
        elif column.words is not None:
            values = column.words.take(values.astype(np.int64) - 1)
        rows.append(places)
        data.append(values)
    joined, values = np.concatenate(rows), np.concatenate(data)
    if not len(joined):
        return None
    entries = ColumnEntries(size, joined, values, several=first.several)
    if name.endswith((".high", ".low")) or name == FIRST_KNOWN:
        return entries.plain()
    if first.kind is ColumnKind.TEXT:
        return entries.texts(list(coder))
    return entries.floats() if first.kind is ColumnKind.FLOAT else entries.integers()
