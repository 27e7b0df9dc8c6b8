"""The literals of a query: numbers, truth values, texts, times, durations, sizes, digests and versions, each read once.

A literal keeps its exact value: a number is an int or a Decimal, a time is an interval in UTC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

EARLIEST = datetime.min.replace(tzinfo=UTC)
LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Number:
    """A number, exact: an int if it is whole, else a Decimal; ±infinity and NaN are Decimals."""

    value: int | Decimal
    text: str
    """The number as it was typed; `=` compares it with a value that was recorded as text."""

    @property
    def double(self) -> float:
        """The nearest double; ±infinity if the number is larger than any."""
        return as_double(self.value)


@dataclass(frozen=True)
class Truth:
    """``true`` or ``false``."""

    value: bool


@dataclass(frozen=True)
class Text:
    """A text with wildcards: its parts between the wildcards; one part if it has none.

    ``acc*`` is ``("acc", "")``, ``*`` is ``("", "")``. Any text, also the empty one, may stand for a wildcard.
    """

    parts: tuple[str, ...]

    @property
    def exact(self) -> str | None:
        """The text, if it has no wildcard."""
        return self.parts[0] if len(self.parts) == 1 else None

    def matches(self, value: str, *, ignore_case: bool) -> bool:
        """Return whether the whole of *value* is this text; case is ignored by `str.casefold`."""
        parts = [part.casefold() for part in self.parts] if ignore_case else list(self.parts)
        value = value.casefold() if ignore_case else value
        if len(parts) == 1:
            return value == parts[0]
        first, *middle, last = parts
        if len(value) < len(first) + len(last) or not (value.startswith(first) and value.endswith(last)):
            return False
        place, end = len(first), len(value) - len(last)
        for part in middle:  # the earliest place for each part leaves most room for the next
            found = value.find(part, place, end)
            if found < 0:
                return False
            place = found + len(part)
        return True


@dataclass(frozen=True)
class Regex:
    """A regular expression in the syntax of RE2, searched anywhere in the text."""

    pattern: str


@dataclass(frozen=True)
class TimeRange:
    """The interval that a time stands for, in UTC: a whole day for ``2026-01-31``; an instant is one microsecond."""

    since: datetime
    """Inclusive."""
    until: datetime
    """Exclusive; `LATEST` for the last instant that there is."""


@dataclass(frozen=True)
class RelativeTime:
    """A time before or after now, such as ``-7d``; `resolve` makes it an instant."""

    offset: timedelta


@dataclass(frozen=True)
class Duration:
    """A length of time; exact to the microsecond."""

    value: timedelta


@dataclass(frozen=True)
class Size:
    """A number of bytes."""

    bytes: int


@dataclass(frozen=True)
class Digest:
    """The beginning of a SHA-256 in hex, lower case: 1 to 64 digits."""

    prefix: str


@dataclass(frozen=True)
class Version:
    """A version, compared by its numbers: 3.9 is less than 3.11, and ``:3.11`` is every 3.11.x."""

    text: str


Literal = Number | Truth | Text | Regex | TimeRange | RelativeTime | Duration | Size | Digest | Version
"""The value of a condition, by its kind."""


def as_double(number: float | Decimal) -> float:
    """Return the double that is nearest to *number*; ±infinity if it is larger than any."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def instant(time: datetime) -> TimeRange:
    """Return the interval of one microsecond that begins at *time*."""
    return TimeRange(time, LATEST if time == LATEST else time + timedelta(microseconds=1))
