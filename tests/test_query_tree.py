from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from prefect_executions.query.literals import LATEST, Duration, RelativeTime, Text, TimeRange, instant
from prefect_executions.query.tree import (
    And,
    Between,
    Condition,
    Everything,
    FieldTarget,
    Is,
    Not,
    Operator,
    Or,
    Statistic,
    ValueSource,
    ValueTarget,
    conjunction,
    disjunction,
    leaves,
    resolve,
)

A, B, C = Is("archived"), Is("imported"), Is("partial")
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
STARTED = FieldTarget("started")


def after(offset: timedelta) -> Condition:
    return Condition(STARTED, Operator.GREATER, (RelativeTime(offset),))


def test_a_conjunction_is_flat():
    assert conjunction([A, And((B, C))]) == And((A, B, C))
    assert conjunction([A]) == A
    assert conjunction([]) == Everything()


def test_a_disjunction_is_flat_and_matches_nothing_without_terms():
    assert disjunction([Or((A, B)), C]) == Or((A, B, C))
    assert disjunction([A]) == A
    assert disjunction([]) == Not(Everything())


def test_leaves_are_the_terms_from_left_to_right():
    assert list(leaves(And((A, Not(Or((B, C))))))) == [A, B, C]


def test_resolve_counts_relative_times_from_now_everywhere_in_the_tree():
    week = timedelta(days=-7)
    then = instant(datetime(2026, 1, 24, 12, tzinfo=UTC))
    tree = Not(And((after(week), Or((A, Between(STARTED, RelativeTime(week), RelativeTime(timedelta())))))))
    condition = Condition(STARTED, Operator.GREATER, (then,))
    assert resolve(tree, NOON) == Not(And((condition, Or((A, Between(STARTED, then, instant(NOON)))))))


def test_resolve_gives_times_in_utc():
    now = NOON.astimezone(timezone(timedelta(hours=2)))
    resolved = resolve(after(timedelta()), now)
    assert isinstance(resolved, Condition)
    (found,) = resolved.values
    assert isinstance(found, TimeRange)
    assert found.since.isoformat() == "2026-01-31T12:00:00+00:00"


@pytest.mark.parametrize(("days", "year"), [(-999_999_999, 1), (999_999_999, 9999)])
def test_a_relative_time_outside_the_calendar_is_its_first_or_last_instant(days, year):
    resolved = resolve(after(timedelta(days=days)), NOON)
    assert isinstance(resolved, Condition)
    (found,) = resolved.values
    assert isinstance(found, TimeRange)
    assert found.since.year == year


def test_resolve_keeps_what_has_no_relative_time():
    tree = Condition(FieldTarget("duration"), Operator.GREATER, (Duration(timedelta(minutes=5)),))
    assert resolve(tree, NOON) == tree


def test_the_last_instant_has_an_end():
    assert instant(LATEST) == TimeRange(LATEST, LATEST)


def test_the_full_name_of_a_value_has_its_statistic():
    assert ValueTarget(ValueSource.METRIC, "loss", Statistic.MIN).full_name == "loss.min"
    assert ValueTarget(ValueSource.PARAM, "loss.min").full_name == "loss.min"


@pytest.mark.parametrize(
    ("parts", "text", "matches"),
    [
        (("",), "", True),
        (("",), "a", False),
        (("", ""), "", True),
        (("acc", ""), "accuracy", True),
        (("acc", ""), "loss", False),
        (("", ".csv"), "a.csv", True),
        (("", ".csv"), ".csv", True),
        (("ab", "ba"), "aba", False),
        (("ab", "ba"), "abba", True),
        (("a", "b", "c"), "a-b-b-c", True),
        (("a", "bb", "b"), "abb", False),
        (("a", "bb", "b"), "abbb", True),
        (("a", "x", "x", "c"), "axc", False),
        (("STRASSE", ""), "straße 1", True),
        (("İ",), "i̇", True),
    ],
)
def test_a_text_matches_the_whole_of_a_value(parts, text, matches):
    assert Text(parts).matches(text, ignore_case=True) is matches


def test_a_text_matches_case_on_request():
    assert not Text(("ACC", "")).matches("accuracy", ignore_case=False)
    assert Text(("acc", "")).matches("accuracy", ignore_case=False)
