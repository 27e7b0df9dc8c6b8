from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_executions.errors import QueryError
from prefect_executions.query.fields import BY_NAME, Kind
from prefect_executions.query.literals import LATEST, Duration, RelativeTime, Size, Text, TimeRange
from prefect_executions.query.tree import Operator
from prefect_executions.query.values import QueryWord, compiled, duration, number, read, time_range, written


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]


def literal(field: str, text: str) -> object:
    (found,) = read(BY_NAME[field], Operator.CONTAINS, QueryWord((text,)))
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("-0", 0),
        ("1e3", 1000),
        ("10.0", 10),
        ("0.1", Decimal("0.1")),
        (".5", Decimal("0.5")),
        ("1E-7", Decimal("1E-7")),
        ("9007199254740993", 2**53 + 1),
        ("123456789012345678901234567890.5", Decimal("123456789012345678901234567890.5")),
        ("-Infinity", Decimal("-inf")),
        ("0e999999", 0),
    ],
)
def test_a_number_is_exact(text, value):
    found = number(text)
    assert found is not None
    assert (found.value, type(found.value), found.text) == (value, type(value), text)


@pytest.mark.parametrize("text", ["", "1.", "1_000", "0x10", "٣", "1e", "--1", "1e1234567", " 1", "1\n"])
def test_other_text_is_not_a_number(text):
    assert number(text) is None


@pytest.mark.parametrize("text", ["nan", "1e1001", "1e-1001", "1e999999"])
def test_nan_and_huge_exponents_are_refused(text):
    with pytest.raises(QueryError):
        number(text)


@pytest.mark.parametrize(
    ("text", "since", "until"),
    [
        ("2026", utc(2026, 1, 1), utc(2027, 1, 1)),
        ("2026-12", utc(2026, 12, 1), utc(2027, 1, 1)),
        ("2024-02", utc(2024, 2, 1), utc(2024, 3, 1)),
        ("2026-01-31", utc(2026, 1, 31), utc(2026, 2, 1)),
        ("2026-01-31T12", utc(2026, 1, 31, 12), utc(2026, 1, 31, 13)),
        ("2026-01-31 12:30", utc(2026, 1, 31, 12, 30), utc(2026, 1, 31, 12, 31)),
        ("2026-01-31T12:30:05", utc(2026, 1, 31, 12, 30, 5), utc(2026, 1, 31, 12, 30, 6)),
        ("2026-01-31T12:30:05.25Z", utc(2026, 1, 31, 12, 30, 5, 250_000), utc(2026, 1, 31, 12, 30, 5, 260_000)),
        ("2026-01-31T12:30:05.000001", utc(2026, 1, 31, 12, 30, 5, 1), utc(2026, 1, 31, 12, 30, 5, 2)),
        ("2026-01-31T00:30+01:00", utc(2026, 1, 30, 23, 30), utc(2026, 1, 30, 23, 31)),
        ("2026-01-31T00-0330", utc(2026, 1, 31, 3, 30), utc(2026, 1, 31, 4, 30)),
        ("9999", utc(9999, 1, 1), LATEST),
        ("9999-12", utc(9999, 12, 1), LATEST),
        ("9999-12-31", utc(9999, 12, 31), LATEST),
    ],
)
def test_a_time_is_the_whole_unit_that_it_names(text, since, until):
    assert time_range(text) == TimeRange(since, until)


@pytest.mark.parametrize(
    "text",
    [
        *("", "26", "0000", "2026-1", "2026-02-30", "2026-01-31+01:00", "2026-01-31\n", "yesterday"),
        *("2026-01-31T24", "2026-01-31T12+25:00", "2026-01-31T12:30:60", "2026-01-31T12:30:05.1234567"),
        "0001-01-01T00+01:00",
    ],
)
def test_other_text_is_not_a_time(text):
    assert time_range(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90s", timedelta(seconds=90)),
        ("2h30m", timedelta(hours=2, minutes=30)),
        ("1.5h", timedelta(minutes=90)),
        ("1w", timedelta(days=7)),
        ("250ms", timedelta(milliseconds=250)),
        ("7us", timedelta(microseconds=7)),
        ("0s", timedelta()),
    ],
)
def test_a_duration_has_units(text, value):
    assert duration(text) == value


@pytest.mark.parametrize("text", ["", "5", "5M", "m", "5m30", "1e3s", "-5m", "9" * 30 + "d", "PT5M"])
def test_other_text_is_not_a_duration(text):
    assert duration(text) is None


def test_a_duration_without_unit_is_seconds():
    assert literal("duration", "90") == Duration(timedelta(seconds=90))


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("12B", 12), ("1.5GB", 1_500_000_000), ("1.5gib", 3 * 2**29), ("1KB", 1000)]
)
def test_a_size_has_decimal_or_binary_units(text, size):
    assert literal("size", text) == Size(size)


@pytest.mark.parametrize("text", ["1.5", "0.1B", "9223372036854775808", "10000000TB", "1XB", "-1", ""])
def test_a_size_is_a_whole_number_of_bytes(text):
    with pytest.raises(QueryError, match="does not fit size"):
        literal("size", text)


def test_a_relative_time_has_a_sign():
    assert literal("started", "-7d") == RelativeTime(timedelta(days=-7))
    assert literal("started", "+1h30m") == RelativeTime(timedelta(minutes=90))


@given(st.timedeltas(timedelta(0), timedelta(days=10_000)))
def test_a_written_duration_is_read_as_the_duration(value):
    assert literal("duration", written(Kind.DURATION, Duration(value))) == Duration(value)


@given(st.integers(0, 2**63 - 1))
def test_a_written_size_is_read_as_the_size(size):
    assert literal("size", written(Kind.SIZE, Size(size))) == Size(size)


def test_a_written_text_keeps_its_wildcards_and_its_blanks():
    assert written(Kind.NAME, Text(("a b", "c", ""))) == '"a b"*c*'


def test_a_regular_expression_takes_linear_time():
    pattern = compiled("(a+)+$")
    assert not pattern.search("a" * 100_000 + "!")


@pytest.mark.parametrize("pattern", ["(", "a{1000}{1000}", "((a{100}){100}){100}", r"(a)\1", "(?=a)", "[[:no:]]"])
def test_what_re2_refuses_is_refused(pattern):
    with pytest.raises(QueryError, match="not supported by RE2"):
        compiled(pattern)
