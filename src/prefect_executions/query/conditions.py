"""The rules of a condition: which operators and literals a field compares with.

Both parsers, of the query language and of CQL2, build their conditions here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from prefect_executions.errors import QueryError
from prefect_executions.query.fields import BY_NAME, OPERATORS, Kind, QueryField, has_order
from prefect_executions.query.literals import Literal, RelativeTime, Text, Truth
from prefect_executions.query.tree import (
    Between,
    Condition,
    FieldTarget,
    Has,
    Operator,
    QueryTree,
    Statistic,
    Target,
    ValueSource,
    ValueTarget,
)

MAX_CHARACTERS = 2000
MAX_DEPTH = 32
"""Parentheses and NOT inside each other."""
MAX_TERMS = 64

EQUALITIES = frozenset({Operator.CONTAINS, Operator.EQUAL, Operator.DIFFERENT})
_NOT_ALLOWED = re.compile("[\\0\ud800-\udfff]")  # no database stores them
_STATISTICS = frozenset(Statistic)


def accepted(text: str) -> str:
    """Return *text* if it has a length and characters that a query may have.

    Raises:
        QueryError: If it has not.
    """
    if len(text) > MAX_CHARACTERS:
        raise QueryError(f"the query has {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed")
    if found := _NOT_ALLOWED.search(text):
        raise QueryError(f"the character U+{ord(found[0]):04X} is not allowed", text=text, column=found.start() + 1)
    return text


def field_of(target: Target) -> QueryField:
    """Return the field of *target*; for a param, metric or input the field of its source."""
    return BY_NAME[target.name if isinstance(target, FieldTarget) else target.source]


def value_target(source: ValueSource, name: str, *, typed: bool) -> ValueTarget:
    """Return the target of a name; if it was *typed* without quotes, its end may be a statistic."""
    base, _, end = name.rpartition(".")
    if typed and base and end in _STATISTICS and source in {ValueSource.METRIC, ValueSource.ANY}:
        return ValueTarget(source, base, Statistic(end))
    return ValueTarget(source, name, Statistic.LAST if source is ValueSource.METRIC else None)


def check_operator(target: Target, operator: Operator) -> None:
    """Refuse an operator that the field of *target* does not have.

    Raises:
        QueryError: Without the place.
    """
    field = field_of(target)
    if isinstance(target, FieldTarget) and field.kind is Kind.VALUE:
        raise QueryError(f"'{field.name}' needs a name", expected=(field.example,))
    if operator not in OPERATORS[field.kind]:
        raise QueryError(
            f"'{operator.value}' does not compare the field {field.name}; a param of this name is param:{field.name}",
            expected=[known.value for known in Operator if known in OPERATORS[field.kind]],
        )


def condition(target: Target, operator: Operator, values: Iterable[Literal]) -> QueryTree:
    """Return the condition that *target* compares with any of *values*.

    ``started:-7d`` means since then, and for a time to come until then.

    Raises:
        QueryError: If the literals do not fit the operator; without the place.
    """
    literals = tuple(dict.fromkeys(values))
    if operator not in EQUALITIES:
        if len(literals) > 1:
            raise QueryError(f"'{operator.value}' takes one value")
        _check_order(literals)
    elif any(isinstance(literal, RelativeTime) for literal in literals):
        if operator is not Operator.CONTAINS or len(literals) > 1:
            raise QueryError("a relative time is an instant", expected=("<, <=, > or >= before it", "a range with TO"))
        ahead = isinstance(literals[0], RelativeTime) and literals[0].offset.total_seconds() > 0
        operator = Operator.LESS_EQUAL if ahead else Operator.GREATER_EQUAL
    return Condition(target, operator, literals)


def between(target: Target, low: Literal | None, high: Literal | None) -> QueryTree:
    """Return the condition that *target* lies from *low* to *high*, both inclusive; None is an open end.

    Raises:
        QueryError: If the literals have no common order; without the place.
    """
    _check_order(end for end in (low, high) if end is not None)
    if low is None:
        return Has(target) if high is None else Condition(target, Operator.LESS_EQUAL, (high,))
    if high is None:
        return Condition(target, Operator.GREATER_EQUAL, (low,))
    if field_of(target).kind is Kind.VALUE and type(low) is not type(high):
        raise QueryError("the ends of a range must be two numbers or two texts")
    return Between(target, low, high)


def check_range(target: Target) -> None:
    """Refuse a range of a field without order.

    Raises:
        QueryError: Without the place.
    """
    check_operator(target, Operator.CONTAINS)
    if not has_order(field_of(target).kind):
        raise QueryError(f"the field {field_of(target).name} has no order, so it has no range")


def _check_order(literals: Iterable[Literal]) -> None:
    for literal in literals:
        if isinstance(literal, Truth):
            raise QueryError("true and false have no order", expected=("=", "!="))
        if isinstance(literal, Text) and literal.exact is None:
            raise QueryError("a text with a wildcard has no order", expected=("a text without *",))
