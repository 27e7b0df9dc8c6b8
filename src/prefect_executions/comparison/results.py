"""The result of one comparison of content, its words, and the times that may differ between two runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

from prefect_executions.comparison.verdict import Agreement
from prefect_executions.methods.model import Comparison

_SHOWN = 5
"""Number of differences of one output that are listed individually."""
_SHORT = 60
MAX_VALUES = 2_000_000
"""How many values of one file are compared one by one; each takes about 100 bytes of memory."""
_TIME = re.compile(
    r"(?<!\d)(\d{4})[-:](\d\d)[-:](\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)(?!\d)", re.ASCII
)
"""ISO 8601, and the form with colons in the date of TIFF and Exif."""
_AROUND = timedelta(hours=26)
"""A time without an offset may be that of any time zone, and clocks differ a little."""


class Result(NamedTuple):
    """How the content of an output agrees, with its differences in words."""

    agreement: Agreement
    words: tuple[str, ...] = ()


class Incomparable(Exception):  # noqa: N818 - not an error: the next way of comparing is tried
    """The content cannot be compared completely in this way; the message is the reason."""


class RunSpan(NamedTuple):
    """When an execution ran; a run without a start has no times that may differ."""

    started: datetime | None = None
    finished: datetime | None = None

    def includes(self, time: datetime) -> bool:
        """Whether *time* can be a time of this run."""
        if self.started is None:
            return False
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        return self.started - _AROUND <= time and (self.finished is None or time <= self.finished + _AROUND)


class Runs(NamedTuple):
    """The two runs that wrote the compared outputs."""

    before: RunSpan = RunSpan()
    after: RunSpan = RunSpan()

    def only_times_differ(self, before: str, after: str) -> bool:
        """Whether two texts are equal except for times of their runs."""
        return _between_times(before, self.before) == _between_times(after, self.after)


def _between_times(text: str, run: RunSpan) -> tuple[str, ...]:
    parts, begin = [], 0
    for match in _TIME.finditer(text):
        year, month, rest = match.groups()
        try:
            is_time_of_run = run.includes(datetime.fromisoformat(f"{year}-{month}-{rest}"))
        except (ValueError, OverflowError):  # no such day, or year 1
            continue
        if is_time_of_run:
            parts.append(text[begin : match.start()])
            begin = match.end()
    return (*parts, text[begin:])


def summary(differing: Sequence[str], volatile: Sequence[str], noun: str, comparison: Comparison) -> Result:
    """Return the result for the *differing* and *volatile* parts, of which only the first few are listed."""
    if differing:
        return Result(Agreement.DIFFERS, (*first_few(differing, noun), *first_few(volatile, noun)))
    if volatile:
        return Result(Agreement.VOLATILE, first_few(volatile, noun))
    return Result(Agreement.EQUAL, (f"written in another way{within(comparison)}",))


def first_few(words: Sequence[str], noun: str) -> tuple[str, ...]:
    """Return the first *words*, and how many more there are."""
    more = len(words) - _SHOWN
    return (*islice(words, _SHOWN), *([f"and {more} {noun}{'' if more == 1 else 's'} more"] if more > 0 else []))


def within(comparison: Comparison) -> str:
    """Return the tolerances of *comparison* in words."""
    tolerances = [f"{part:g}" for part in (comparison.tolerance, comparison.absolute_tolerance) if part]
    return f", or within {' or '.join(tolerances)}" if tolerances else ""


def short(text: str) -> str:
    """Return the beginning of a long *text*."""
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"
