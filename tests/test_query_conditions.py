from __future__ import annotations

from datetime import timedelta

import pytest

from prefect_executions.errors import QueryError
from prefect_executions.query.conditions import (
    accepted,
    between,
    check_operator,
    check_range,
    condition,
    field_of,
    value_target,
)
from prefect_executions.query.literals import Number, RelativeTime, Text, Truth
from prefect_executions.query.tree import (
    Between,
    Condition,
    FieldTarget,
    Has,
    Operator,
    Statistic,
    ValueSource,
    ValueTarget,
)

EPOCHS = ValueTarget(ValueSource.ANY, "epochs")
STARTED = FieldTarget("started")
ONE, TWO = Number(1, "1"), Number(2, "2")


def test_the_field_of_a_value_is_its_source():
    assert field_of(EPOCHS).name == "property"
    assert field_of(STARTED).name == "started"


@pytest.mark.parametrize(
    ("source", "name", "typed", "target"),
    [
        (ValueSource.METRIC, "a.max", True, ValueTarget(ValueSource.METRIC, "a", Statistic.MAX)),
        (ValueSource.METRIC, "a.max", False, ValueTarget(ValueSource.METRIC, "a.max", Statistic.LAST)),
        (ValueSource.METRIC, "a.mean", True, ValueTarget(ValueSource.METRIC, "a.mean", Statistic.LAST)),
        (ValueSource.METRIC, ".max", True, ValueTarget(ValueSource.METRIC, ".max", Statistic.LAST)),
        (ValueSource.ANY, "a.min", True, ValueTarget(ValueSource.ANY, "a", Statistic.MIN)),
        (ValueSource.PARAM, "a.min", True, ValueTarget(ValueSource.PARAM, "a.min")),
        (ValueSource.INPUT, "a", True, ValueTarget(ValueSource.INPUT, "a")),
    ],
)
def test_the_end_of_a_typed_name_of_a_metric_may_be_a_statistic(source, name, typed, target):
    assert value_target(source, name, typed=typed) == target


def test_equal_literals_are_one():
    assert condition(EPOCHS, Operator.EQUAL, [ONE, TWO, ONE]) == Condition(EPOCHS, Operator.EQUAL, (ONE, TWO))


@pytest.mark.parametrize(
    ("days", "operator"), [(-7, Operator.GREATER_EQUAL), (0, Operator.GREATER_EQUAL), (7, Operator.LESS_EQUAL)]
)
def test_a_relative_time_is_since_then_or_until_then(days, operator):
    then = RelativeTime(timedelta(days=days))
    assert condition(STARTED, Operator.CONTAINS, [then]) == Condition(STARTED, operator, (then,))


@pytest.mark.parametrize(
    ("operator", "values"),
    [
        (Operator.LESS, [ONE, TWO]),
        (Operator.LESS, [Truth(value=True)]),
        (Operator.GREATER_EQUAL, [Text(("a", ""))]),
        (Operator.EQUAL, [RelativeTime(timedelta())]),
        (Operator.CONTAINS, [RelativeTime(timedelta()), RelativeTime(timedelta(1))]),
    ],
)
def test_literals_that_do_not_fit_the_operator_are_refused(operator, values):
    with pytest.raises(QueryError):
        condition(EPOCHS, operator, values)


def test_a_range_may_be_open():
    assert between(EPOCHS, ONE, TWO) == Between(EPOCHS, ONE, TWO)
    assert between(EPOCHS, ONE, None) == Condition(EPOCHS, Operator.GREATER_EQUAL, (ONE,))
    assert between(EPOCHS, None, TWO) == Condition(EPOCHS, Operator.LESS_EQUAL, (TWO,))
    assert between(EPOCHS, None, None) == Has(EPOCHS)


@pytest.mark.parametrize("high", [Text(("b",)), Truth(value=True)])
def test_the_ends_of_a_range_have_one_type_and_an_order(high):
    with pytest.raises(QueryError):
        between(EPOCHS, ONE, high)


@pytest.mark.parametrize(
    ("target", "operator"),
    [
        (FieldTarget("status"), Operator.LESS),
        (FieldTarget("message"), Operator.GREATER),
        (FieldTarget("id"), Operator.MATCHES),
        (FieldTarget("param"), Operator.EQUAL),
    ],
)
def test_an_operator_that_a_field_does_not_have_is_refused(target, operator):
    with pytest.raises(QueryError):
        check_operator(target, operator)


def test_a_field_without_order_has_no_range():
    check_range(STARTED)
    with pytest.raises(QueryError, match="no order"):
        check_range(FieldTarget("status"))


def test_a_query_of_2000_characters_is_accepted():
    assert accepted("a" * 2000) == "a" * 2000
    with pytest.raises(QueryError, match="2,001 characters; at most 2,000"):
        accepted("a" * 2001)
