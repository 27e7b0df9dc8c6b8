"""Compares two JSON outputs by their values; numbers are compared as exactly as they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from prefect_executions.comparison.numbers import equal_numbers, number
from prefect_executions.comparison.results import MAX_VALUES, Incomparable, Result, Runs, short, summary
from prefect_executions.methods.model import Comparison

_CONSTANTS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""Not JSON, but Python, NumPy and many other writers produce them."""


def compare_json(before: bytes, after: bytes, comparison: Comparison, runs: Runs) -> Result:
    """Compare two JSON documents.

    Raises:
        Incomparable: If either is not JSON, has a member twice, or is nested too deeply.
    """
    try:
        drift = list(_drift("", _parsed(before), _parsed(after), comparison, runs))
    except RecursionError:
        raise Incomparable("the JSON is nested too deeply") from None
    differing = [item.words for item in drift if not item.volatile]
    volatile = [f"{item.words} (volatile)" for item in drift if item.volatile]
    return summary(differing, volatile, "member", comparison)


def _parsed(data: bytes) -> Any:
    if sum(map(data.count, (b"[", b"{", b","))) > MAX_VALUES:
        raise Incomparable(f"it may have more than {MAX_VALUES} values")
    try:
        return json.loads(
            data,
            object_pairs_hook=_unique_members,
            parse_float=_fraction,
            parse_int=_integer,
            parse_constant=_CONSTANTS.__getitem__,
        )
    except ValueError as error:
        raise Incomparable(f"it is not valid JSON: {error}") from error


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has a member twice")
    return members


def _integer(text: str) -> int | Decimal:
    return Decimal(text) if text == "-0" else int(text)  # an int has no sign of zero


def _fraction(text: str) -> float | Decimal:
    """Return a float only if it is written in exactly this way, because floats take less memory."""
    value = float(text)
    exact = value if repr(value) == text else number(text)
    if exact is None:
        raise ValueError(f"the exponent of {short(text)} is too large")
    return exact


class _Drift(NamedTuple):
    words: str
    volatile: bool


def _drift(
    path: str, old: Any, new: Any, comparison: Comparison, runs: Runs, *, volatile: bool = False
) -> Iterator[_Drift]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            member, is_volatile = f"{path}/{name}", volatile or comparison.is_volatile_part(name)
            if name not in new:
                yield _Drift(f"{member} is gone", is_volatile)
            elif name not in old:
                yield _Drift(f"{member} is new", is_volatile)
            else:
                yield from _drift(member, old[name], new[name], comparison, runs, volatile=is_volatile)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield _Drift(f"{path or '/'} had {len(old)} items and has {len(new)}", volatile)
            return
        for index, (first, second) in enumerate(zip(old, new, strict=True)):
            yield from _drift(f"{path}/{index}", first, second, comparison, runs, volatile=volatile)
    elif not _equal_values(old, new, comparison):
        words = f"{path or '/'} was {_shown(old)} and is {_shown(new)}"
        only_times = isinstance(old, str) and isinstance(new, str) and runs.only_times_differ(old, new)
        yield _Drift(words, volatile or only_times)


def _equal_values(old: Any, new: Any, comparison: Comparison) -> bool:
    first, second = (_exact(value) for value in (old, new))
    if first is not None and second is not None:
        return (type(old) is type(new) and old == new != 0) or equal_numbers(first, second, comparison)
    return type(old) is type(new) and bool(old == new)


def _exact(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    return Decimal(value) if isinstance(value, int) else Decimal(str(value))


def _shown(value: Any) -> str:
    return short(str(value) if isinstance(value, Decimal) else json.dumps(value, default=float))
