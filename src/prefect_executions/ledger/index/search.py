"""The evaluator of searches: the exact total, sorted pages, facets, groups, histograms and completions of a query."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np

from prefect_executions.errors import RequestError
from prefect_executions.ledger.index.access import Value, exact_number, field_columns, layered_value, value_layers
from prefect_executions.ledger.index.build import part_key
from prefect_executions.ledger.index.index import IndexSnapshot
from prefect_executions.ledger.index.keys import SortKey, key_reader, rank_text, rank_value
from prefect_executions.ledger.index.masks import RelatedIds, mask_of
from prefect_executions.ledger.index.order import after, first_rows, newest
from prefect_executions.ledger.index.segment import FIRST_KNOWN, Segment
from prefect_executions.ledger.index.statistics import Period, Statistics, statistics
from prefect_executions.ledger.index.summaries import (
    BINS,
    Facet,
    FacetValue,
    Group,
    Histogram,
    Matched,
    facet,
    groups,
    histogram,
)
from prefect_executions.ledger.rows import time_of
from prefect_executions.query.canonical import canonical_target
from prefect_executions.query.fields import BY_NAME, Kind
from prefect_executions.query.tree import FieldTarget, QueryTree, Target, ValueSource, ValueTarget

MOST_VALUES = 20
"""The default number of values of a facet."""

_TIME, _DIGEST = 8, 4
"""Bytes of a cursor: its time and what identifies its order."""

_SOURCES = {"params": ValueSource.PARAM, "metrics": ValueSource.METRIC, "inputs": ValueSource.INPUT}


class NameCount(NamedTuple):
    """A name of a param, metric or input, and how many executions have a value of it."""

    source: ValueSource
    name: str
    executions: int


Cell = Value | datetime | timedelta | tuple[Value, ...] | None
"""A value of a result; a tuple for a field with several values, None if it is missing or a list or an object."""


class FoundPage(NamedTuple):
    """The ids of some results in their order, and the cursor of the next page, or None on the last page."""

    ids: tuple[str, ...]
    after: str | None
    rows: tuple[tuple[Cell, ...], ...] = ()
    """The values of the requested columns for each id."""


class _Place(NamedTuple):
    """A result: the values of the sort keys, and what orders equal ones."""

    values: tuple[Value | None, ...]
    first_known: int
    id: str
    segment: Segment
    row: int


class _Cursor(NamedTuple):
    """The place of the last result of a page."""

    values: tuple[Value | None, ...]
    first_known: int
    id: str


@dataclass(frozen=True)
class Found:
    """The executions that a query matched at one moment."""

    matched: tuple[Matched, ...]

    @property
    def total(self) -> int:
        """How many there are, exactly."""
        return sum(part.total for part in self.matched)

    def page(
        self,
        sort: Sequence[SortKey] = (),
        *,
        limit: int = 50,
        after: str | None = None,
        columns: Sequence[Target] = (),
    ) -> FoundPage:
        """Return the first *limit* results in the order of *sort*, then newest first; *after* is a page's cursor.

        A cursor stays valid when executions are added or removed. A result whose sorted
        values changed in between may occur twice or not at all.

        Raises:
            RequestError: If *after* is not a cursor of this order, or *limit* is not positive.
        """
        if limit < 1:
            raise RequestError(f"a page needs a limit of at least 1, not {limit}")
        begin = _parse_cursor(after, sort) if after else None
        places = [place for part in self.matched for place in _first(part, sort, limit + 1, begin)]
        places.sort(key=lambda place: (place.first_known, place.id), reverse=True)
        for index, key in reversed(list(enumerate(sort))):  # stable sorts, the last key first
            places.sort(key=_comparable(index, key), reverse=key.descending)
            places.sort(key=lambda place, index=index: place.values[index] is None)  # type: ignore[misc]
        chosen = places[:limit]
        more = len(places) > limit
        return FoundPage(
            tuple(place.id for place in chosen),
            _cursor(chosen[-1], sort) if more else None,
            tuple(tuple(cell(place.segment, place.row, column) for column in columns) for place in chosen),
        )

    def facet(self, target: Target, *, most: int = MOST_VALUES) -> Facet:
        """Return how many results have each value of *target*."""
        return facet(self.matched, target, most=most)

    def groups(self, by: Sequence[Target], aggregate: Sequence[Target] = ()) -> tuple[Group, ...]:
        """Return the results in groups of equal values of *by*, with statistics of the numbers of *aggregate*."""
        return groups(self.matched, by, aggregate)

    def histogram(self, target: Target, bins: int = BINS) -> Histogram:
        """Return the distribution of the numbers of *target*."""
        return histogram(self.matched, target, bins)

    def statistics(self, by: Sequence[Target] = (), per: Period | None = None) -> tuple[Statistics, ...]:
        """Return rates, durations, waits, throughput and resources of the results, by *by* and by period of their end.

        Raises:
            RequestError: If there are too many groups.
        """
        return statistics(self.matched, by, per)

    def digests(self, path: str) -> tuple[str, ...]:
        """Return the first 32 digits of each distinct digest of the output *path*, in the order of their executions."""
        first: list[tuple[int, str, str]] = []
        for part in self.matched:
            for row, digest in _first_digests(part, path):
                time = int(part.segment.columns[FIRST_KNOWN].data[row])
                first.append((time, part.segment.id(row), digest))
        return tuple(dict.fromkeys(digest for _, _, digest in sorted(first)))

    def names(self, prefix: str = "", *, most: int = MOST_VALUES) -> tuple[NameCount, ...]:
        """Return the names of params, metrics and inputs that begin with *prefix*, ignoring case, by frequency."""
        counts: Counter[tuple[ValueSource, str]] = Counter()
        for part in self.matched:
            for table, names in part.segment.names.items():
                for name in names:
                    if name.casefold().startswith(prefix.casefold()):
                        target = ValueTarget(_SOURCES[table], name)
                        counts[_SOURCES[table], name] += _having(part, target)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return tuple(NameCount(source, name, count) for (source, name), count in ordered[:most] if count)

    @property
    def recorded_names(self) -> dict[ValueSource, set[str]]:
        """The names of all recorded params, metrics and inputs, whatever was found."""
        found: dict[ValueSource, set[str]] = {source: set() for source in _SOURCES.values()}
        for part in self.matched:
            for table, names in part.segment.names.items():
                found[_SOURCES[table]].update(names)
        return found

    def values(self, target: Target, prefix: str = "", *, most: int = MOST_VALUES) -> tuple[FacetValue, ...]:
        """Return the values of *target* whose text begins with *prefix*, ignoring case, by frequency."""
        every = facet(self.matched, target, most=1 << 62).values
        found = (one for one in every if _text(one.value).casefold().startswith(prefix.casefold()))
        return tuple(one for one, _ in zip(found, range(most), strict=False))


def search(snapshot: IndexSnapshot, tree: QueryTree, related: RelatedIds) -> Found:
    """Return the executions in *snapshot* that *tree*, which is resolved, matches; *related* answers its links."""
    return Found(
        tuple(Matched(part.segment, mask_of(part.segment, part.live, tree, related)) for part in snapshot.segments)
    )


def cell(segment: Segment, row: int, target: Target) -> Cell:
    """Return the value of *target* in a row: a time in UTC, a duration, a number, a truth value or a text."""
    if not isinstance(target, FieldTarget):
        return layered_value(value_layers(segment, target), row)
    if target.name == "id":
        return segment.id(row)
    kind = BY_NAME[target.name].kind
    columns = field_columns(segment, target.name)[-1:]
    if BY_NAME[target.name].several:
        return tuple(value for column in columns for value in column.values_of(row))
    value = columns[0].value(row) if columns else None
    if value is not None and kind is Kind.TIME:
        return time_of(value)
    return timedelta(microseconds=value) if value is not None and kind is Kind.DURATION else value


# --- private ---------------------------------------------------------------------


def _first(part: Matched, sort: Sequence[SortKey], most: int, begin: _Cursor | None) -> list[_Place]:
    segment = part.segment
    if not segment.size:
        return []
    cursor = begin.values if begin else (None,) * len(sort)
    readers = [key_reader(segment, key, value) for key, value in zip(sort, cursor, strict=True)]
    if begin is None and not sort and part.mask is not None:
        rows = newest(part.mask, most)
    else:
        rows = part.rows()
        keys = [reader.key for reader in readers]
        if begin is not None:
            bounds = [reader.bound(value) for reader, value in zip(readers, cursor, strict=True)]
            rows = after(rows, keys, bounds, segment.position(begin.first_known, begin.id))
        rows = first_rows(rows, keys, most)
    times = segment.columns[FIRST_KNOWN].data
    return [
        _Place(tuple(reader.value(row) for reader in readers), int(times[row]), segment.id(row), segment, row)
        for row in rows.tolist()
    ]


def _comparable(index: int, key: SortKey) -> Callable[[_Place], Any]:
    text_key = rank_text(key.target)

    def comparable(place: _Place) -> Any:
        kind, value = rank_value(place.values[index])
        return kind, text_key(value) if isinstance(value, str) else value

    return comparable


def _cursor(place: _Place, sort: Sequence[SortKey]) -> str:
    if not sort:  # as `Ledger.newest`, so that `list` continues with and without a query
        data = f"{place.first_known} {place.id}".encode()
    else:  # bytes instead of digits, because people copy it from a terminal of 80 columns
        values = json.dumps([_encoded(value) for value in place.values], separators=(",", ":"))
        data = place.first_known.to_bytes(_TIME, signed=True) + _digest(sort) + _packed_id(place.id) + values.encode()
    return base64.urlsafe_b64encode(data).decode()


def _parse_cursor(cursor: str, sort: Sequence[SortKey]) -> _Cursor:
    try:
        data = base64.b64decode(cursor, altchars=b"-_", validate=True)
        if not sort:
            first_known, execution_id = data.decode().split(" ")
            return _Cursor((), int(first_known), execution_id)
        execution_id, content = _unpacked_id(data[_TIME + _DIGEST :])
        values = json.loads(content)
        if data[_TIME : _TIME + _DIGEST] == _digest(sort) and len(values) == len(sort):
            return _Cursor(tuple(map(_decoded, values)), int.from_bytes(data[:_TIME], signed=True), execution_id)
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    raise RequestError(f"'{cursor}' is not a cursor of this search; omit it to start at the first page")


def _digest(sort: Sequence[SortKey]) -> bytes:
    """Return a few bytes that another order does not have."""
    names = (f"{'-' if key.descending else ''}{canonical_target(key.target)}" for key in sort)
    return hashlib.sha256("\n".join(names).encode()).digest()[:_DIGEST]


def _packed_id(execution_id: str) -> bytes:
    """Return the 16 bytes of a UUID, and any other id as text; the first byte is its length, or 0 for a UUID."""
    with suppress(ValueError):
        if str(packed := UUID(execution_id)) == execution_id:
            return b"\0" + packed.bytes
    text = execution_id.encode()
    return len(text).to_bytes() + text


def _unpacked_id(data: bytes) -> tuple[str, bytes]:
    """Return the id at the beginning of *data*, and what follows it."""
    end = 1 + (data[0] or 16)
    packed = data[1:end]
    return packed.decode() if data[0] else str(UUID(bytes=packed)), data[end:]


def _encoded(value: Value | None) -> Any:
    return {"exact": str(value)} if isinstance(value, Decimal) else value


def _decoded(value: Any) -> Value | None:
    if isinstance(value, dict):
        return exact_number(value["exact"])
    if isinstance(value, bool | int | float | str | None):
        return value
    raise TypeError(value)


def _first_digests(part: Matched, path: str) -> list[tuple[int, str]]:
    """Return the distinct digests of the output *path* with the first row of each."""
    columns = (part.segment.columns.get(part_key("outputs", name)) for name in ("path", "high", "low"))
    paths, high, low = columns
    if paths is None or high is None or low is None or paths.rows is None:
        return []
    code = paths.texts.position(path)
    if code == len(paths.texts) or paths.texts[code] != path:
        return []
    entries = np.flatnonzero(paths.data == code + 1)  # the columns of a table have their entries in one order
    if part.mask is not None:
        entries = entries[part.mask.take(paths.rows.take(entries))]
    halves = np.stack((high.data.take(entries), low.data.take(entries)))
    distinct, index = np.unique(halves, axis=1, return_index=True)
    rows = paths.rows.take(entries.take(index)).tolist()
    return [(row, f"{one:016x}{two:016x}") for row, one, two in zip(rows, *distinct.tolist(), strict=True)]


def _having(part: Matched, target: ValueTarget) -> int:
    masks = [layer.present(part.segment.size) for layer in value_layers(part.segment, target)]
    return sum(int(np.count_nonzero(mask if part.mask is None else mask & part.mask)) for mask in masks)


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
