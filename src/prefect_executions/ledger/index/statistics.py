"""Statistics of a search's results: success, failures by reason, durations, waiting times, throughput, resources.

Law: as in `summaries`, the statistics of several segments equal those of one. A median
needs every number, so the numbers of all segments are joined first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from prefect_executions.errors import RequestError
from prefect_executions.ledger.index.access import Value
from prefect_executions.ledger.index.columns import Array
from prefect_executions.ledger.index.summaries import Matched, codes_of, grouped_rows, numbers_of
from prefect_executions.ledger.rows import time_of
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.query.tree import FieldTarget, Target

MOST_GROUPS = 10_000
"""More groups are refused: their statistics would take more memory than the executions."""

_STATUSES: Mapping[str, int] = {status: index for index, status in enumerate(Status)}
_REASONS: Mapping[str, int] = {reason: index for index, reason in enumerate(Reason)}
_MEASURES = ("duration", "wait", "cpu", "memory")
_FIELDS = ("duration", "created", "scheduled", "started", "finished", "cpu", "memory")
_MICROSECONDS = 1e6


class Period(StrEnum):
    """A unit of time for throughput, in UTC."""

    HOUR = "hour"
    DAY = "day"

    @property
    def seconds(self) -> int:
        return 3600 if self is Period.HOUR else 86400


@dataclass(frozen=True)
class Distribution:
    """The numbers that executions have of one measure; quantiles are interpolated linearly."""

    count: int
    mean: float
    median: float
    p95: float
    maximum: float
    total: float


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The statistics of some executions."""

    values: tuple[Value | None, ...]
    """What they have in common: a value for each name that they are grouped by."""
    period: datetime | None
    """The begin of the hour or day in which they ended; None without periods."""
    executions: int
    statuses: Mapping[Status, int]
    """How many have each status, without zeros."""
    failures: Mapping[Reason, int]
    """How many failed for each reason, without zeros."""
    duration: Distribution | None
    """From start to end, in seconds; None if no execution has one."""
    wait: Distribution | None
    """From the time of scheduling, or else of creation, to the start, in seconds."""
    cpu: Distribution | None
    """CPU time, in seconds."""
    memory: Distribution | None
    """Peak memory, in bytes."""
    span: float
    """Seconds between the first and the last end; the whole period, with periods."""
    ended: int
    """Executions with a time of end."""

    @property
    def judged(self) -> int:
        """Executions that completed or failed."""
        return self.statuses.get(Status.COMPLETED, 0) + self.statuses.get(Status.FAILED, 0)

    @property
    def success_rate(self) -> float | None:
        """Completed ones among those that completed or failed; None if there are none."""
        return self.statuses.get(Status.COMPLETED, 0) / self.judged if self.judged else None

    def failure_rate(self, reason: Reason) -> float | None:
        """Those that failed for *reason* among those that completed or failed; None if there are none."""
        return self.failures.get(reason, 0) / self.judged if self.judged else None

    def throughput(self, period: Period) -> float | None:
        """Return how many executions ended in an average *period*; None if they ended at one moment."""
        return self.ended * period.seconds / self.span if self.span else None


def statistics(
    matched: Iterable[Matched], by: Sequence[Target], per: Period | None = None, *, most: int = MOST_GROUPS
) -> tuple[Statistics, ...]:
    """Return the statistics of the groups by *by*, the largest first, or of each period in which executions ended.

    With periods, groups are in the order of time, and executions without an end are left out.

    Raises:
        RequestError: If there are more than *most* groups.
    """
    data, values = _joined(matched, by)
    keys = data.group
    begins = np.zeros(0)
    if per is not None:
        data = data.where(np.isfinite(data.finished))
        begins, period = np.unique(np.floor(data.finished / per.seconds), return_inverse=True)
        keys = data.group * max(len(begins), 1) + period
    chosen, member, counts = np.unique(keys, return_inverse=True, return_counts=True)
    if len(chosen) > most:
        raise RequestError(f"there are {len(chosen):,} groups, more than {most:,}; group by fewer values")
    members = _Members(member, len(chosen))
    measures = {name: members.distributions(numbers) for name, numbers in zip(_MEASURES, data.measures, strict=True)}
    statuses = members.counted(data.status, _STATUSES)
    failures = members.counted(np.where(data.status == _STATUSES[Status.FAILED], data.reason, -1), _REASONS)
    ended, spans = members.spans(data.finished)
    found = []
    for number, key in enumerate(chosen.tolist()):
        group, index = divmod(key, max(len(begins), 1)) if per else (key, 0)
        begin = float(begins[index]) * per.seconds if per else None
        one = Statistics(
            values=values[group],
            period=None if begin is None else time_of(int(begin * _MICROSECONDS)),
            executions=int(counts[number]),
            statuses={status: count for status, count in zip(Status, statuses[number], strict=True) if count},
            failures={reason: count for reason, count in zip(Reason, failures[number], strict=True) if count},
            span=per.seconds if per else spans[number],
            ended=ended[number],
            **{name: found_ones[number] for name, found_ones in measures.items()},
        )
        found.append((begin or 0.0, -one.executions, key, one))
    return tuple(one for *_, one in sorted(found, key=lambda item: item[:3]))


class _Members(NamedTuple):
    """The group of each entry, and the number of groups; every method answers for all groups at once."""

    member: Array
    groups: int

    def counted(self, codes: Array, words: Mapping[str, int]) -> list[list[int]]:
        """Return how often each group has each code; entries with -1 do not count."""
        known = codes >= 0
        cells = self.member[known] * len(words) + codes[known]
        counts: list[list[int]] = (
            np.bincount(cells, minlength=self.groups * len(words)).reshape(self.groups, len(words)).tolist()
        )
        return counts

    def distributions(self, numbers: Array) -> list[Distribution | None]:
        """Return the distribution of the finite numbers of each group; None if it has none."""
        numbers, counts, begins = self._sorted(numbers)
        if not len(numbers):
            return [None] * self.groups
        sums = np.add.reduceat(np.append(numbers, 0.0), begins) * (counts > 0)
        last = np.maximum(begins + counts - 1, 0)

        def quantile(share: float) -> Array:
            place = begins + share * np.maximum(counts - 1, 0)
            low = np.minimum(place.astype(np.int64), last)
            lower, upper = numbers.take(low), numbers.take(np.minimum(low + 1, last))
            return np.asarray(lower + (upper - lower) * (place - low))

        columns = (counts, sums / np.maximum(counts, 1), quantile(0.5), quantile(0.95), numbers.take(last), sums)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Distribution(*row) if row[0] else None for row in rows]

    def spans(self, times: Array) -> tuple[list[int], list[float]]:
        """Return how many finite times each group has, and how far its first and last are apart."""
        times, counts, begins = self._sorted(times)
        if not len(times):
            return [0] * self.groups, [0.0] * self.groups
        first = np.minimum(begins, len(times) - 1)
        spans = times.take(np.maximum(begins + counts - 1, first)) - times.take(first)
        return counts.tolist(), np.where(counts > 0, spans, 0.0).tolist()

    def _sorted(self, numbers: Array) -> tuple[Array, Array, Array]:
        """Return the finite numbers, sorted by group and value, and how many each group has and where they begin."""
        finite = np.flatnonzero(np.isfinite(numbers))
        member, numbers = self.member.take(finite), numbers.take(finite)
        counts = np.bincount(member, minlength=self.groups)
        return numbers.take(np.lexsort((numbers, member))), counts, np.cumsum(counts) - counts


class _Joined(NamedTuple):
    """An entry for each execution in each of its groups."""

    group: Array
    status: Array
    reason: Array
    finished: Array
    measures: tuple[Array, ...]

    def where(self, chosen: Array) -> _Joined:
        measures = tuple(one[chosen] for one in self.measures)
        return _Joined(self.group[chosen], self.status[chosen], self.reason[chosen], self.finished[chosen], measures)

    @classmethod
    def of(cls, parts: Sequence[_Joined]) -> _Joined:
        def joined(arrays: Iterable[Array]) -> Array:
            return np.concatenate([np.zeros(0, np.int64), *arrays])

        return cls(
            joined(part.group for part in parts),
            joined(part.status for part in parts),
            joined(part.reason for part in parts),
            joined(part.finished for part in parts),
            tuple(joined(part.measures[index] for part in parts) for index in range(len(_MEASURES))),
        )


def _joined(matched: Iterable[Matched], by: Sequence[Target]) -> tuple[_Joined, list[tuple[Value | None, ...]]]:
    numbers: dict[object, int] = {}
    values: list[tuple[Value | None, ...]] = []
    parts: list[_Joined] = []
    for part in matched:
        segment, grouped = part.segment, grouped_rows(part, by)
        rows, places = grouped.rows, grouped.places
        for key, own in zip(grouped.key, grouped.values, strict=True):
            if key not in numbers:
                numbers[key] = len(values)
                values.append(own)
        places_of = np.array([numbers[key] for key in grouped.key], np.int64)
        fields = {name: numbers_of(segment, rows, FieldTarget(name)) for name in _FIELDS}
        known = np.where(np.isnan(fields["scheduled"]), fields["created"], fields["scheduled"])
        fields["wait"] = np.maximum(fields["started"] - known, 0)
        parts.append(
            _Joined(
                places_of.take(grouped.member),
                codes_of(segment, rows, "status", _STATUSES).take(places),
                codes_of(segment, rows, "reason", _REASONS).take(places),
                fields["finished"].take(places),
                tuple(fields[name].take(places) for name in _MEASURES),
            )
        )
    return _Joined.of(parts), values
