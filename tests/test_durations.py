"""Durations as text."""

from __future__ import annotations

from datetime import timedelta

import pytest

from prefect_executions.durations import format_seconds, parse_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (604800, "7 days"),
        (86400, "1 day"),
        (43200, "12 hours"),
        (600, "10 minutes"),
        (90, "90 s"),
        (0, "0 s"),
        (0.5, "0.5 s"),
    ],
)
def test_seconds_are_shown_in_the_largest_unit_of_which_they_are_a_multiple(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("12 h", timedelta(hours=12)),
        ("7d", timedelta(days=7)),
        (" 2w ", timedelta(weeks=2)),
        ("1.5h", timedelta(minutes=90)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text, duration):
    assert parse_duration(text) == duration


def test_a_number_without_a_unit_counts_seconds_where_the_caller_allows_it():
    assert parse_duration("2.5", default_seconds=True) == timedelta(seconds=2.5)
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration("2.5")


@pytest.mark.parametrize("text", ["", "d", "-1d", "1y", "1e3s", "1m30s", "1M", "soon"])
def test_other_text_is_not_a_duration(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text, default_seconds=True)


def test_a_duration_that_is_too_long_overflows():
    with pytest.raises(OverflowError):
        parse_duration("9" * 400 + "d")
