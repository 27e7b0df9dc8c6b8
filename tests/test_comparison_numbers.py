"""Numbers are compared exactly, as they are written."""

from __future__ import annotations

from decimal import Decimal, localcontext
from math import inf, nextafter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_executions.comparison.numbers import equal_numbers, number
from prefect_executions.methods.model import Comparison

EXACT = Comparison()
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(FINITE, st.integers(16, 40))
def test_a_float_equals_itself_with_more_digits(value, digits):
    assert equal_numbers(number(repr(value)), number(f"{value:.{digits}e}"), EXACT)


@given(FINITE, st.integers(0, 40))
def test_a_float_differs_from_the_next_one(value, digits):
    other = nextafter(value, inf)
    assume(other != inf)
    assert not equal_numbers(number(repr(value)), number(repr(other)), EXACT)
    assert not equal_numbers(number(f"{value:.{digits + 16}e}"), number(f"{other:.{digits + 16}e}"), EXACT)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=30), st.integers(-5, 5))
def test_digits_beyond_those_of_a_float_are_compared(value, step):
    assume(step)
    other = value + step * Decimal("1e-30")
    assume(other != value)
    assert not equal_numbers(number(f"{value:f}"), number(f"{other:f}"), EXACT)


@pytest.mark.parametrize(
    "text", ["", " ", "+", "1e", "e1", "0x1", "1_0", "007", "+7", "-07", "1 2", "½", "٣", "1\n", "."]
)
def test_text_that_only_resembles_a_number_is_text(text):
    assert number(text) is None


@pytest.mark.parametrize(
    "text", ["0", "-0", "7", " 7 ", "7.", ".5", "+7.0", "1E5", "-1e-07", "NaN", "-inf", "Infinity"]
)
def test_a_number_is_read_in_every_form(text):
    assert number(text) is not None


def test_the_decimal_context_of_the_method_does_not_matter():
    with localcontext() as context:
        context.prec = 3
        context.clear_traps()
        assert not equal_numbers(number("1.00001"), number("1.00002"), EXACT)
        assert number("1e99999999999999999999") is None
        assert equal_numbers(number("1.00001"), number("1.00002"), Comparison(tolerance=1e-4))


def test_a_tolerance_is_as_wide_as_it_is_written():
    assert equal_numbers(number("0"), number("0.3"), Comparison(absolute_tolerance=0.3))
    assert not equal_numbers(number("0"), number("0.30000000000000001"), Comparison(absolute_tolerance=0.3))
