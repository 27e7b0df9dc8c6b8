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
"""More groups are refused: each has medians, which take 0.2 ms."""

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
    order = np.argsort(member, kind="stable")
    bounds = np.concatenate(([0], np.cumsum(counts))).tolist()
    found = []
    for number, key in enumerate(chosen.tolist()):
        group, index = divmod(key, max(len(begins), 1)) if per else (key, 0)
        begin = float(begins[index]) * per.seconds if per else None
        own = data.where(order[bounds[number] : bounds[number + 1]])
        found.append((begin, -len(own.group), key, _summarized(own, values[group], begin, per)))
    return tuple(one for *_, one in sorted(found, key=lambda item: (item[0] or 0.0, *item[1:3])))


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


def _summarized(own: _Joined, values: tuple[Value | None, ...], begin: float | None, per: Period | None) -> Statistics:
    ends = own.finished[np.isfinite(own.finished)]
    failed = own.reason[(own.status == _STATUSES[Status.FAILED]) & (own.reason >= 0)]
    statuses, reasons = (np.bincount(codes[codes >= 0]).tolist() for codes in (own.status, failed))
    return Statistics(
        values=values,
        period=None if begin is None else time_of(int(begin * _MICROSECONDS)),
        executions=len(own.group),
        statuses={status: count for status, count in zip(Status, statuses, strict=False) if count},
        failures={reason: count for reason, count in zip(Reason, reasons, strict=False) if count},
        span=per.seconds if per else float(ends.max() - ends.min()) if len(ends) else 0.0,
        ended=len(ends),
        **{name: _distribution(numbers) for name, numbers in zip(_MEASURES, own.measures, strict=True)},
    )


def _distribution(numbers: Array) -> Distribution | None:
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return None
    median, p95 = np.quantile(finite, (0.5, 0.95)).tolist()
    return Distribution(len(finite), float(finite.mean()), median, p95, float(finite.max()), float(finite.sum()))
