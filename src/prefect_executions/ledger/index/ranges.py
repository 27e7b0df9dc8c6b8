"""Conditions on numbers as comparisons of whole arrays, exact for every double and every integer of 64 bits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import ceil, floor

import numpy as np

from prefect_executions.ledger.index.access import is_nan
from prefect_executions.ledger.index.columns import Array, Mask
from prefect_executions.ledger.index.rules import Test, acceptance
from prefect_executions.query.fields import Kind
from prefect_executions.query.literals import LATEST, Duration, Literal, Number, Size, TimeRange
from prefect_executions.query.tree import Between, Condition, Operator

Range = tuple[int, int]
"""The least and the largest integer of a range."""

_LEAST, _MOST = -(2**63) + 1, 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EQUALITIES = frozenset({Operator.CONTAINS, Operator.EQUAL})


def integer_ranges(test: Test) -> list[Range]:
    """Return the ranges of integers, microseconds or bytes that *test* accepts."""
    if isinstance(test, Between):
        (low, _), (_, high) = _interval(test.low), _interval(test.high)
        from_low, to_high = _accepted(Operator.GREATER_EQUAL, low, low), _accepted(Operator.LESS_EQUAL, high, high)
        return [(max(from_low[0], to_high[0]), min(from_low[1], to_high[1]))]
    return [_accepted(test.operator, *_interval(value)) for value in test.values]


def in_ranges(ranges: list[Range], numbers: Array) -> Mask:
    """Return for each integer whether it is in one of *ranges*."""
    mask = np.zeros(len(numbers), np.bool_)
    for low, high in ranges:
        if low <= high:
            mask |= (numbers >= max(low, _LEAST)) & (numbers <= min(high, _MOST))
    return mask


def doubles(test: Test, numbers: Array) -> Mask:
    """Return for each double whether *test* accepts it; NaN stands for a missing value and is not accepted."""
    if isinstance(test, Between):
        low = doubles(Condition(test.target, Operator.GREATER_EQUAL, (test.low,)), numbers)
        return low & doubles(Condition(test.target, Operator.LESS_EQUAL, (test.high,)), numbers)
    mask = np.zeros(len(numbers), np.bool_)
    for value in test.values:
        if isinstance(value, Number):
            mask |= _compared(Condition(test.target, test.operator, (value,)), value, numbers)
    return mask


def _compared(test: Condition, literal: Number, numbers: Array) -> Mask:
    """Compare with the double that is nearest to *literal*; the rules decide about this double itself."""
    try:
        nearest = float(literal.value)
    except OverflowError:
        nearest = float("inf") if literal.value > 0 else float("-inf")
    if is_nan(nearest):
        return np.zeros(len(numbers), np.bool_)
    itself = acceptance(Kind.VALUE, test)(nearest)
    if test.operator in _EQUALITIES:
        return numbers == nearest if itself else np.zeros(len(numbers), np.bool_)
    if test.operator in {Operator.LESS, Operator.LESS_EQUAL}:
        return numbers <= nearest if itself else numbers < nearest
    return numbers >= nearest if itself else numbers > nearest


def _interval(literal: Literal) -> tuple[int | Decimal, int | Decimal]:
    """Return the first and the last number that *literal* stands for."""
    match literal:
        case Number(value=value):
            return value, value
        case Duration(value=value):
            return value // _MICROSECOND, value // _MICROSECOND
        case Size(bytes=size):
            return size, size
        case TimeRange(since=since, until=until):
            last = _MOST if until == LATEST else (until - _EPOCH) // _MICROSECOND - 1
            return (since - _EPOCH) // _MICROSECOND, last
    raise TypeError(f"{literal} is not a number, a time or a size")


def _accepted(operator: Operator, first: int | Decimal, last: int | Decimal) -> Range:
    if is_nan(first):
        return 1, 0
    first, last = max(first, _LEAST - 1), max(last, _LEAST - 1)
    first, last = min(first, _MOST + 1), min(last, _MOST + 1)
    match operator:
        case Operator.LESS:
            return _LEAST, ceil(first) - 1
        case Operator.LESS_EQUAL:
            return _LEAST, floor(last)
        case Operator.GREATER:
            return floor(last) + 1, _MOST
        case Operator.GREATER_EQUAL:
            return ceil(first), _MOST
    return ceil(first), floor(last)
