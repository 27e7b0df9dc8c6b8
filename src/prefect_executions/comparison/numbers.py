"""Numbers as outputs write them: compared exactly, or within the tolerances of a `Comparison`.

Law: a number is never rounded before it is compared. Two texts of the same floating-point
number are equal, but a text with digits that a floating-point number does not have is not
such a text.
"""

from __future__ import annotations

import re
from decimal import MAX_EMAX, MIN_EMIN, ROUND_DOWN, ROUND_UP, Context, Decimal, InvalidOperation
from math import inf

from prefect_executions.methods.model import Comparison

_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?i:nan|inf|infinity)")
"""Not a number: 007 and +49 are codes, and 1_000 and digits of other scripts are words."""
_CODE = re.compile(r"\+[0-9]+")
_EXACT = Context(traps=[InvalidOperation])
_UP, _DOWN = (
    Context(prec=40, rounding=rounding, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[]) for rounding in (ROUND_UP, ROUND_DOWN)
)
_MOST_DIGITS = 800
"""More digits than the exact decimal form of any double has (767)."""


def number(text: str) -> Decimal | None:
    """Return the exact number that *text* is, with ASCII spaces around it allowed; else None."""
    text = text.strip(" ")
    if not _NUMBER.fullmatch(text) or _CODE.fullmatch(text):
        return None
    try:
        return Decimal(text, _EXACT)
    except InvalidOperation:  # its exponent is beyond 10^18
        return None


def equal_numbers(first: Decimal, second: Decimal, comparison: Comparison) -> bool:
    """Whether two numbers are equal, or within the tolerances of *comparison*."""
    return _same(first, second) or _near(first, second, comparison)


def relative_difference(first: float | Decimal, second: float | Decimal) -> float:
    """Return the difference of two numbers relative to the larger one.

    Equal numbers and two NaN give 0; other pairs with NaN or infinity give infinity.
    """
    one, other = (value if isinstance(value, Decimal) else Decimal(value) for value in (first, second))
    if (one.is_nan() and other.is_nan()) or one == other:
        return 0.0
    if not (one.is_finite() and other.is_finite()):
        return inf
    return float(_UP.divide(_UP.subtract(one, other).copy_abs(), _larger(one, other)))


def _same(first: Decimal, second: Decimal) -> bool:
    if first.is_nan() or second.is_nan():
        return first.is_nan() and second.is_nan()
    if first.is_signed() != second.is_signed():  # 0 and -0 are different numbers
        return False
    return first == second or (_is_double(first) and _is_double(second) and float(first) == float(second))


def _is_double(value: Decimal) -> bool:
    """Whether *value* is a double, written with some number of digits; an integer is not."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or exponent == 0 or len(digits) > _MOST_DIGITS:
        return False
    double = float(value)
    if abs(double) == inf:
        return False
    # repr() rounds a tie between two shortest texts up, and format() to the even digit.
    return value in (Decimal(f"{double:.{len(digits) - 1}e}"), Decimal(repr(double)))


def _near(first: Decimal, second: Decimal, comparison: Comparison) -> bool:
    if not (first.is_finite() and second.is_finite()):
        return False
    difference = _UP.subtract(first, second).copy_abs()
    relative = comparison.tolerance and _DOWN.multiply(_decimal(comparison.tolerance), _larger(first, second))
    return bool(
        (comparison.tolerance and difference <= relative)
        or (comparison.absolute_tolerance and difference <= _decimal(comparison.absolute_tolerance))
    )


def _larger(first: Decimal, second: Decimal) -> Decimal:
    return max(first.copy_abs(), second.copy_abs())


def _decimal(tolerance: float) -> Decimal:
    return Decimal(repr(tolerance))  # 0.1 as its author wrote it
