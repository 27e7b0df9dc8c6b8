"""Summaries of a search's results: facets, groups with statistics, and histograms, all exact.

Law: a summary of several segments equals that of one: each is summarized alone, and
counts, means and squared deviations are merged (Chan, Golub and LeVeque, 1979).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, nan, sqrt
from typing import Any, NamedTuple

import numpy as np

from prefect_executions.ledger.index.access import Value, field_columns, is_nan, untagged, value_layers
from prefect_executions.ledger.index.columns import Array, ColumnKind, Mask, SegmentColumn
from prefect_executions.ledger.index.keys import rank_value
from prefect_executions.ledger.index.segment import Segment
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.tree import FieldTarget, Target

BINS = 20
"""The default number of bins of a histogram."""

_SECONDS = 1e-6


class Matched(NamedTuple):
    """The rows of a segment that a query matches; None for all of them."""

    segment: Segment
    mask: Mask | None

    @property
    def total(self) -> int:
        return self.segment.size if self.mask is None else int(np.count_nonzero(self.mask))

    def rows(self) -> Array:
        """Return the rows, ascending."""
        return np.arange(self.segment.size) if self.mask is None else np.flatnonzero(self.mask)


class FacetValue(NamedTuple):
    """A value, and how many executions have it."""

    value: Value
    executions: int


@dataclass(frozen=True, kw_only=True)
class Facet:
    """The values of a field or a named value among the results, the most frequent first."""

    values: tuple[FacetValue, ...]
    missing: int
    """Executions without a value, or with a list or an object."""
    distinct: int
    """How many different values there are, of which `values` may have only the most frequent."""


@dataclass(kw_only=True)
class Measure:
    """The numbers of one target in a group; executions without a finite number do not count."""

    count: int = 0
    mean: float = nan
    squares: float = 0.0
    """The sum of the squared deviations from the mean."""
    minimum: float = inf
    maximum: float = -inf
    minimum_id: str = ""
    """The newest execution with the minimum."""
    maximum_id: str = ""

    @property
    def sd(self) -> float:
        """The standard deviation of the sample; NaN if it has fewer than two values."""
        return sqrt(self.squares / (self.count - 1)) if self.count > 1 else nan

    def include(self, other: Measure) -> None:
        """Add the numbers of *other*, which are of newer rows or of other ones."""
        if not other.count:
            return
        if not self.count:
            self.mean = other.mean
        else:
            difference = other.mean - self.mean
            total = self.count + other.count
            self.mean += difference * other.count / total
            self.squares += difference * difference * self.count * other.count / total
        self.squares += other.squares
        self.count += other.count
        if other.minimum <= self.minimum:
            self.minimum, self.minimum_id = other.minimum, other.minimum_id
        if other.maximum >= self.maximum:
            self.maximum, self.maximum_id = other.maximum, other.maximum_id


@dataclass(kw_only=True)
class Group:
    """The executions with equal values of the targets that a search groups by."""

    values: tuple[Value | None, ...]
    executions: int = 0
    completed: int = 0
    failed: int = 0
    measures: dict[Target, Measure] = field(default_factory=dict)

    @property
    def success_rate(self) -> float:
        """Completed ones among those that completed or failed; NaN if there are none."""
        ended = self.completed + self.failed
        return self.completed / ended if ended else nan


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The numbers of a target in bins of equal width; the last bin includes its upper edge."""

    edges: tuple[float, ...]
    """One more than there are bins; seconds for durations, seconds since 1970 for times."""
    counts: tuple[int, ...]
    missing: int
    """Executions without a finite number."""


def facet(matched: Iterable[Matched], target: Target, *, most: int) -> Facet:
    """Return the *most* frequent values of *target*; ties in the order of their values."""
    counts: Counter[tuple[int, Any]] = Counter()
    missing = 0
    for part in matched:
        for value, count in _counted(part, target):
            if value is None:
                missing += count
            else:
                counts[rank_value(value)] += count
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    values = tuple(FacetValue(value, count) for (_, value), count in ordered[:most])
    return Facet(values=values, missing=missing, distinct=len(counts))


def groups(matched: Iterable[Matched], targets: Sequence[Target], aggregates: Sequence[Target]) -> tuple[Group, ...]:
    """Return the groups by *targets*, the largest first; an execution with several tags is in several groups."""
    found: dict[tuple[tuple[int, Any], ...], Group] = {}
    for part in matched:
        for values, group in _grouped(part, targets, aggregates):
            key = tuple(map(rank_value, values))
            known = found.get(key)
            if known is None:
                found[key] = group
                continue
            known.executions += group.executions
            known.completed += group.completed
            known.failed += group.failed
            for target, measure in group.measures.items():
                known.measures[target].include(measure)
    return tuple(group for _, group in sorted(found.items(), key=lambda item: (-item[1].executions, item[0])))


def histogram(matched: Sequence[Matched], target: Target, bins: int = BINS) -> Histogram:
    """Return the numbers of *target* in *bins* between the smallest and the largest one."""
    numbers, missing = [], 0
    for part in matched:
        every = numbers_of(part.segment, part.rows(), target)
        finite = every[np.isfinite(every)]
        missing += len(every) - len(finite)
        numbers.append(finite)
    joined = np.concatenate(numbers) if numbers else np.zeros(0)
    if not len(joined):
        return Histogram(edges=(), counts=(), missing=missing)
    counts, edges = np.histogram(joined, bins if joined.min() < joined.max() else 1)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()), missing=missing)


def numbers_of(segment: Segment, rows: Array, target: Target) -> Array:
    """Return the number of each of *rows*, which are ascending, as a double; NaN where there is none."""
    numbers = np.full(len(rows), nan)
    if isinstance(target, FieldTarget):
        for column in field_columns(segment, target.name)[:1]:
            if column.kind is not ColumnKind.TEXT:
                scale = 1 if target.name in {"attempt", "progress", "size", "memory"} else _SECONDS
                places, data = _decoded(column, rows)
                numbers[places] = data * scale
        return numbers
    for layer in reversed(value_layers(segment, target)):
        if layer.words:
            places, codes = layer.words.at(rows)
            table = np.array([nan, *(_as_double(untagged(word)) for word in layer.words.texts.all())])
            numbers[places] = table.take(codes)
        if layer.numbers:
            places, data = _decoded(layer.numbers, rows)
            numbers[places] = data
    return numbers


# --- private ---------------------------------------------------------------------


def _as_double(value: Value | None) -> float:
    try:
        return nan if value is None or isinstance(value, bool | str) else float(value)
    except OverflowError:
        return nan


def _decoded(column: SegmentColumn, rows: Array) -> tuple[Array, Array]:
    places, data = column.at(rows)
    return places, column.numbers.take(data.astype(np.int64) - 1) if column.coded else data


class _Codes(NamedTuple):
    """A code for each row, 0 if it has no value, and the value of each code."""

    codes: Array
    size: int
    value: Callable[[int], Value | None]


def _coded(segment: Segment, rows: Array, target: Target) -> _Codes:
    """Return codes of the values of *rows*, which are ascending; the first value of a field with several."""
    if isinstance(target, FieldTarget):
        if target.name == "id":
            return _Codes(np.arange(1, len(rows) + 1), len(rows), lambda code: segment.id(int(rows[code - 1])))
        columns = field_columns(segment, target.name)
        return _coded_column(columns[0], rows) if columns else _Codes(np.zeros(len(rows), np.int64), 0, lambda _: None)
    codes = np.zeros(len(rows), np.int64)
    values: list[Value | None] = []
    for layer in reversed(value_layers(segment, target)):
        for column in layer:
            if column is None:
                continue
            part = _coded_column(column, rows)
            filled = np.flatnonzero(part.codes)
            codes[filled] = part.codes.take(filled).astype(np.int64) + len(values)
            texts = column.kind is ColumnKind.TEXT
            own = (part.value(code) for code in range(1, part.size + 1))
            values += [_scalar(untagged(str(value))) if texts else value for value in own]
    return _Codes(codes, len(values), lambda code: values[code - 1])


def _scalar(value: Value | None) -> Value | None:
    return None if value is not None and is_nan(value) else value


def _coded_column(column: SegmentColumn, rows: Array) -> _Codes:
    if column.coded:
        count = len(column.words) if column.words is not None else 0
        if column.rows is None:
            return _Codes(column.data.take(rows), count, column.word)
        places, data = column.at(rows)
        codes = np.zeros(len(rows), data.dtype)
        codes[places] = data
        return _Codes(codes, count, column.word)
    places, data = column.at(rows)
    distinct, inverse = np.unique(data, return_inverse=True)
    codes = np.zeros(len(rows), np.int64)
    codes[places] = inverse + 1
    return _Codes(codes, len(distinct), lambda code: distinct[code - 1].item())


def _counted(part: Matched, target: Target) -> Iterator[tuple[Value | None, int]]:
    several = [
        column
        for column in (field_columns(part.segment, target.name) if isinstance(target, FieldTarget) else ())
        if column.several
    ][:1]
    if several:
        yield from _counted_entries(part, several[0])
        return
    coded = _coded(part.segment, part.rows(), target)
    counts = np.bincount(coded.codes, minlength=1)
    for code in np.flatnonzero(counts).tolist():
        yield coded.value(code) if code else None, int(counts[code])


def _counted_entries(part: Matched, column: SegmentColumn) -> Iterator[tuple[Value | None, int]]:
    assert column.rows is not None  # noqa: S101  for the type checker
    data, rows = column.data, column.rows
    if part.mask is not None:
        entries = np.flatnonzero(part.mask.take(rows))
        data, rows = data.take(entries), rows.take(entries)
    if column.coded:
        every = np.bincount(data, minlength=1)
        distinct = np.flatnonzero(every)
        counts = every.take(distinct)
    else:
        distinct, counts = np.unique(data, return_counts=True)
    for item, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        yield column.word(item) if column.coded else item, count
    missing = part.total - (int(np.count_nonzero(rows[1:] != rows[:-1])) + 1 if len(rows) else 0)
    if missing:
        yield None, missing


class GroupedRows(NamedTuple):
    """The rows that a query matches, in groups; a row with several tags has several places."""

    rows: Array
    """The rows, ascending."""
    places: Array
    """Where in `rows` each place is."""
    member: Array
    """The group of each place, as an index of `values`."""
    values: tuple[tuple[Value | None, ...], ...]

    @property
    def key(self) -> tuple[tuple[tuple[int, Any], ...], ...]:
        """What identifies each group in every segment."""
        return tuple(tuple(map(rank_value, values)) for values in self.values)


def grouped_rows(part: Matched, targets: Sequence[Target]) -> GroupedRows:
    """Return the rows of *part* in groups of equal values of *targets*."""
    rows = part.rows()
    places, coded = _expanded(part.segment, rows, targets)
    member = np.zeros(len(places), np.int64)
    for one in coded:
        member = member * (one.size + 1) + one.codes
        if one.size > len(places):
            member = np.unique(member, return_inverse=True)[1]
    chosen, first, member = np.unique(member, return_index=True, return_inverse=True)
    values = tuple(
        tuple(one.value(code) if (code := int(one.codes[first[number]])) else None for one in coded)
        for number in range(len(chosen))
    )
    return GroupedRows(rows, places, member, values)


def codes_of(segment: Segment, rows: Array, name: str, codes: Mapping[str, int]) -> Array:
    """Return the code of the word that each of *rows* has in the field *name*: -1 if it has none or another."""
    coded = _coded(segment, rows, FieldTarget(name))
    table = [codes.get(str(coded.value(code)), -1) for code in range(1, coded.size + 1)]
    return np.array([-1, *table], np.int64).take(coded.codes)


def _grouped(
    part: Matched, targets: Sequence[Target], aggregates: Sequence[Target]
) -> Iterator[tuple[tuple[Value | None, ...], Group]]:
    rows, places, member, values = grouped_rows(part, targets)
    if not len(rows):
        return
    counts = np.bincount(member, minlength=len(values))
    status = codes_of(part.segment, rows, "status", {Status.COMPLETED: 0, Status.FAILED: 1}).take(places)
    completed, failed = (np.bincount(member[status == end], minlength=len(values)) for end in (0, 1))
    measured = {
        target: _measured(part.segment, rows, target, places=places, member=member, count=len(values))
        for target in aggregates
    }
    for number, own in enumerate(values):
        group = Group(
            values=own,
            executions=int(counts[number]),
            completed=int(completed[number]),
            failed=int(failed[number]),
            measures={target: measures[number] for target, measures in measured.items()},
        )
        yield own, group


def _expanded(segment: Segment, rows: Array, targets: Sequence[Target]) -> tuple[Array, list[_Codes]]:
    """Return places in *rows*, repeated for each value of a field with several, and the codes of each target there."""
    places = np.arange(len(rows))
    coded: list[_Codes] = []
    for target in targets:
        columns = field_columns(segment, target.name) if isinstance(target, FieldTarget) else []
        if not columns or not columns[0].several or columns[0].rows is None or not columns[0].coded:
            one = _coded(segment, rows, target)
            coded.append(one._replace(codes=one.codes.take(places)))
            continue
        column, own = columns[0], columns[0].rows
        begin, end = (np.searchsorted(own, rows.take(places), side=side) for side in ("left", "right"))
        lengths = np.maximum(end - begin, 1)
        repeated = np.repeat(np.arange(len(places)), lengths)
        offset = np.arange(len(repeated)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        entry = np.minimum(begin.take(repeated) + offset, len(own) - 1)
        codes = np.where((end > begin).take(repeated), column.data.take(entry), column.data.dtype.type(0))
        coded = [one._replace(codes=one.codes.take(repeated)) for one in coded]
        places = places.take(repeated)
        coded.append(
            _Codes(codes, len(column.texts) if column.kind is ColumnKind.TEXT else len(column.numbers), column.word)
        )
    return places, coded


def _measured(
    segment: Segment, rows: Array, target: Target, *, places: Array, member: Array, count: int
) -> list[Measure]:
    numbers = numbers_of(segment, rows, target).take(places)
    finite = np.flatnonzero(np.isfinite(numbers))
    numbers, member, places = numbers.take(finite), member.take(finite), places.take(finite)
    counts = np.bincount(member, minlength=count)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        means = np.bincount(member, numbers, count) / counts
        squares = np.bincount(member, (numbers - means.take(member)) ** 2, count)
    least, most = np.full(count, inf), np.full(count, -inf)
    np.minimum.at(least, member, numbers)
    np.maximum.at(most, member, numbers)
    newest = []
    for extreme in (least, most):
        row = np.full(count, -1, np.int64)
        equal = np.flatnonzero(numbers == extreme.take(member))
        row[member.take(equal)] = rows.take(places.take(equal))  # the last assignment is that of the newest row
        newest.append(row)
    return [
        Measure(
            count=int(counts[number]),
            mean=float(means[number]),
            squares=float(squares[number]),
            minimum=float(least[number]),
            maximum=float(most[number]),
            minimum_id=segment.id(int(newest[0][number])),
            maximum_id=segment.id(int(newest[1][number])),
        )
        if counts[number]
        else Measure()
        for number in range(count)
    ]
