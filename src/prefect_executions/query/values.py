"""Literals as text: read them by the kind of their field, and write them in canonical form.

Law: `read` of `written` is the same literal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from typing import Any

from prefect_executions.errors import QueryError
from prefect_executions.query.fields import Kind, QueryField, nearest
from prefect_executions.query.literals import (
    LATEST,
    Digest,
    Duration,
    Literal,
    Number,
    Regex,
    RelativeTime,
    Size,
    Text,
    TimeRange,
    Truth,
    Version,
)
from prefect_executions.query.tree import Operator

KEYWORDS = ("AND", "OR", "NOT", "TO")

MAX_EXPONENT = 1000
"""A Decimal with a larger exponent takes long to convert; a double ends at 308."""
MAX_SIZE = 2**63 - 1

_NUMBER = re.compile(
    r"[+-]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:e[+-]?[0-9]{1,6})?|[+-]?inf(?:inity)?|nan", re.IGNORECASE
)
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|[smhdw]))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|[smhdw])")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:([kmgtp]?)(i?)b)?", re.IGNORECASE)
_TIME = re.compile(
    r"(?P<year>[0-9]{4})(?:-(?P<month>[0-9]{2})(?:-(?P<day>[0-9]{2})"
    r"(?:[T ](?P<hour>[0-9]{2})(?::(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:\.(?P<fraction>[0-9]{1,6}))?)?)?"
    r"(?P<zone>Z|[+-][0-9]{2}(?::?[0-9]{2})?)?)?)?)?"
)
_HEX = re.compile(r"[0-9a-f]{1,64}")

_MICROSECONDS = {
    "w": 604_800_000_000,
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
    "us": 1,
}
_EXPECTED = {
    Kind.NUMBER: ("a number such as 10, 0.5 or 1e-3",),
    Kind.TIME: ("a time such as 2026, 2026-01-31, 2026-01-31T12:30 or -7d",),
    Kind.DURATION: ("a duration such as 90s, 5m or 2h30m",),
    Kind.SIZE: ("a size such as 100kB, 1.5GB or 2GiB",),
    Kind.DIGEST: ("a SHA-256 in hex, or its beginning",),
}


@dataclass(frozen=True)
class QueryWord:
    """A word of a query before its kind is known."""

    parts: tuple[str, ...]
    """The text between the wildcards, as in `Text`."""
    quoted: bool = False
    """A part of it is in quotes."""

    @property
    def text(self) -> str:
        return "*".join(self.parts)

    @property
    def plain(self) -> str | None:
        """The text, if it has no wildcard."""
        return self.parts[0] if len(self.parts) == 1 else None


def read(field: QueryField, operator: Operator, word: QueryWord) -> tuple[Literal, ...]:
    """Return the literal that *word* is for a field; several for a word that stands for several choices.

    Raises:
        QueryError: If it is none; without the place.
    """
    if operator is Operator.MATCHES:
        return (regex(word.text),)
    if field.kind is Kind.CHOICE:
        return _choices(field, word)
    reader = _READERS.get(field.kind, _text)
    literal = reader(word, operator)
    if literal is None:
        raise QueryError(f"'{_short(word.text)}' does not fit {field.name}", expected=_EXPECTED.get(field.kind, ()))
    return (literal,)


def regex(pattern: str) -> Regex:
    """Return a regular expression after RE2 has accepted it.

    Raises:
        QueryError: If it is not in the syntax of RE2; without the place.
    """
    compiled(pattern)
    return Regex(pattern)


@lru_cache(maxsize=64)
def compiled(pattern: str) -> Any:
    """Return the compiled *pattern*; its time is linear in the text that it searches.

    Raises:
        QueryError: If it is not in the syntax of RE2, or too large; without the place.
    """
    import re2  # noqa: PLC0415 - takes 20 ms, and few queries have a regular expression

    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        cause = error.args[0]
        reason = cause.decode("utf-8", "replace") if isinstance(cause, bytes) else str(cause)
        raise QueryError(f"the regular expression is not supported by RE2: {reason}") from error


def number(text: str) -> Number | None:
    """Return the number that *text* is, exactly; None if it is none."""
    if not _NUMBER.fullmatch(text):
        return None
    value = Decimal(text)
    if value.is_nan():
        raise QueryError("nothing is equal to NaN", expected=("has:loss AND NOT loss<=inf, which finds NaN",))
    if value.is_infinite():
        return Number(value, text)
    if abs(value.adjusted()) > MAX_EXPONENT and value:
        raise QueryError(f"the exponent of '{_short(text)}' is larger than {MAX_EXPONENT}")
    whole = value.to_integral_value()
    return Number(int(whole) if whole == value else value, text)


def duration(text: str) -> timedelta | None:
    """Return the duration that *text* is, such as ``2h30m``; None if it is none."""
    if not _DURATION.fullmatch(text):
        return None
    microseconds = sum(Decimal(amount) * _MICROSECONDS[unit] for amount, unit in _DURATION_PART.findall(text))
    try:
        return timedelta(microseconds=round(microseconds))
    except OverflowError:
        return None


def time_range(text: str) -> TimeRange | None:
    """Return the interval that an ISO 8601 date or time stands for, in UTC unless it has a zone; None if it is none."""
    found = _TIME.fullmatch(text)
    if not found:
        return None
    given = {name: int(digits) for name in _PARTS if (digits := found[name])}
    fraction = found["fraction"] or ""
    try:
        since = datetime(
            **{"month": 1, "day": 1} | given,
            microsecond=int(fraction.ljust(6, "0")),
            tzinfo=_zone(found["zone"]),
        ).astimezone(UTC)
        return TimeRange(since, _end(since, _PARTS[len(given) - 1], fraction))
    except (ValueError, OverflowError):
        return None


_PARTS = ("year", "month", "day", "hour", "minute", "second")


def _zone(text: str | None) -> timezone:
    if not text or text == "Z":
        return UTC
    minutes = int(text[1:3]) * 60 + int(text[-2:] if len(text) > 3 else 0)  # noqa: PLR2004 - +01
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))


def _end(since: datetime, precision: str, fraction: str) -> datetime:
    try:
        if precision == "year":
            return since.replace(year=since.year + 1)
        if precision == "month":
            return (since + timedelta(days=31)).replace(day=1)
        if fraction:
            return since + timedelta(microseconds=10 ** (6 - len(fraction)))
        return since + timedelta(**{f"{precision}s": 1})
    except (ValueError, OverflowError):  # the end of the year 9999
        return LATEST


def _time(word: QueryWord, _operator: Operator) -> Literal | None:
    text = word.plain or ""
    if text[:1] in {"-", "+"} and (offset := duration(text[1:])) is not None:
        return RelativeTime(-offset if text[0] == "-" else offset)
    return time_range(text)


def _duration(word: QueryWord, _operator: Operator) -> Duration | None:
    text = word.plain or ""
    value = duration(f"{text}s" if text[-1:].isdigit() else text)
    return None if value is None else Duration(value)


def _size(word: QueryWord, _operator: Operator) -> Size | None:
    found = _SIZE.fullmatch(word.plain or "")
    if not found:
        return None
    power = " kmgtp".index((found[2] or " ").lower())
    size = Decimal(found[1]) * (1024 if found[3] else 1000) ** power
    return Size(int(size)) if size == size.to_integral_value() and size <= MAX_SIZE else None


def _number(word: QueryWord, _operator: Operator) -> Number | None:
    return number(word.plain or "")


def _digest(word: QueryWord, _operator: Operator) -> Digest | None:
    text = (word.plain or "").lower().removeprefix("sha256:")
    return Digest(text) if _HEX.fullmatch(text) else None


def _file(word: QueryWord, operator: Operator) -> Literal | None:
    plain = (word.plain or "").lower()
    if plain.startswith("sha256:"):
        return _digest(word, operator)
    if len(plain) == 64 and _HEX.fullmatch(plain):  # noqa: PLR2004 - a whole SHA-256
        return Digest(plain)
    return Text(word.parts)


def _version(word: QueryWord, _operator: Operator) -> Literal | None:
    if word.plain is None:
        return Text(word.parts)
    return Version(word.plain) if word.plain else None


def _value(word: QueryWord, _operator: Operator) -> Literal | None:
    if word.quoted or word.plain is None:
        return Text(word.parts)
    if word.plain.lower() in {"true", "false"}:
        return Truth(word.plain.lower() == "true")
    return number(word.plain) or Text(word.parts)


def _text(word: QueryWord, _operator: Operator) -> Text:
    return Text(word.parts)


_READERS: dict[Kind, Callable[[QueryWord, Operator], Literal | None]] = {
    Kind.NUMBER: _number,
    Kind.TIME: _time,
    Kind.DURATION: _duration,
    Kind.SIZE: _size,
    Kind.DIGEST: _digest,
    Kind.FILE: _file,
    Kind.VERSION: _version,
    Kind.VALUE: _value,
}


def _choices(field: QueryField, word: QueryWord) -> tuple[Literal, ...]:
    values = field.choices.get(word.text.lower())
    if values is None:
        raise QueryError(
            f"'{_short(word.text)}' is not a {field.name}",
            expected=tuple(field.choices),
            suggestion=nearest(word.text, field.choices),
        )
    return tuple(Text((value,)) for value in values)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"  # noqa: PLR2004 - half a line of a terminal


def written(kind: Kind, literal: Literal) -> str:
    """Return the canonical text of a literal of a field of *kind*."""
    if isinstance(literal, Text):
        return written_text(literal.parts, plain=kind is not Kind.VALUE or _stays_text(literal.parts))
    return _WRITERS[type(literal)](literal)


_SAFE = re.compile(r"[\w./+%@-][\w./+%@:-]*")


def written_text(parts: tuple[str, ...], *, plain: bool = True) -> str:
    """Return a text with wildcards as it is typed, in quotes where it needs them, or everywhere if not *plain*."""
    return "*".join(
        part
        if (plain and _SAFE.fullmatch(part) and part not in KEYWORDS) or (not part and len(parts) > 1)
        else quoted(part)
        for part in parts
    )


def quoted(text: str) -> str:
    """Return *text* in quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _stays_text(parts: tuple[str, ...]) -> bool:
    return len(parts) > 1 or not (_NUMBER.fullmatch(parts[0]) or parts[0].lower() in {"true", "false"})


def _written_duration(value: timedelta) -> str:
    left = value // timedelta(microseconds=1)
    found = []
    for unit in ("d", "h", "m", "s", "ms", "us"):
        amount, left = divmod(left, _MICROSECONDS[unit])
        if amount:
            found.append(f"{amount}{unit}")
    return "".join(found) or "0s"


def _written_size(size: int) -> str:
    for unit, prefix in ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if size >= unit and size * 10 % unit == 0:
            whole, tenth = divmod(size * 10 // unit, 10)
            return f"{whole}.{tenth}{prefix}B" if tenth else f"{whole}{prefix}B"
    return f"{size}B"


def _written_time(value: TimeRange) -> str:
    past_the_hour = timedelta(minutes=value.since.minute)
    text = value.since.replace(tzinfo=None).isoformat(timespec="microseconds")
    hour = (value.since - past_the_hour).replace(tzinfo=None).isoformat(timespec="hours")
    lengths = (4, 7, 10, 13, 16, 19, 21, 22, 23, 24, 25, 26)  # from the year to the microsecond
    zoned = f"{hour}-00:{value.since.minute:02}"  # an hour in a zone such as +05:30
    return next(known for known in (*(text[:length] for length in lengths), zoned) if time_range(known) == value)


_WRITERS: dict[type[Literal], Callable[[Any], str]] = {
    Number: lambda literal: literal.text,
    Truth: lambda literal: "true" if literal.value else "false",
    Regex: lambda literal: quoted(literal.pattern),
    TimeRange: _written_time,
    RelativeTime: lambda literal: (
        f"{'+' if literal.offset > timedelta() else '-'}{_written_duration(abs(literal.offset))}"
    ),
    Duration: lambda literal: _written_duration(literal.value),
    Size: lambda literal: _written_size(literal.bytes),
    Digest: lambda literal: f"sha256:{literal.prefix}",
    Version: lambda literal: written_text((literal.text,)),
}
