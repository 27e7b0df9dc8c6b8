"""Durations as text, such as ``90s``, ``30m``, ``12h``, ``7d`` and ``2w``."""

from __future__ import annotations

import re
from datetime import timedelta

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([smhdw]?)")
_UNITS = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


_SHOWN = (("day", 86400), ("hour", 3600), ("minute", 60))


def format_seconds(seconds: float) -> str:
    """Return *seconds* as text for people, in the largest unit of which it is a multiple: ``7 days``, ``90 s``."""
    for unit, size in _SHOWN:
        number, rest = divmod(seconds, size)
        if number and not rest:
            return f"{number:g} {unit}{'' if number == 1 else 's'}"
    return f"{seconds:g} s"


def parse_duration(text: str, *, default_seconds: bool = False) -> timedelta:
    """Return the duration that *text* states; *default_seconds* accepts a number without a unit.

    Units are lower case, because ``M`` is often a month.

    Raises:
        ValueError: If *text* is not a duration.
        OverflowError: If it is too long for a `timedelta`.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not (match[2] or default_seconds):
        raise ValueError(f"'{text}' is not a duration")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})
