"""The rules by which a condition accepts one value, those of the naive evaluator."""

from __future__ import annotations

from collections.abc import Callable

from prefect_executions.ledger.index.access import Value
from prefect_executions.query.fields import Kind
from prefect_executions.query.literals import Text
from prefect_executions.query.match import FileFacts, compares, contains_words
from prefect_executions.query.tree import Between, Condition, Operator

Test = Condition | Between


def acceptance(kind: Kind, test: Test) -> Callable[[Value], bool]:
    """Return the function that says whether *test*, on a field of *kind*, accepts a value.

    The operator is not `DIFFERENT`: a field with several values differs only if none is equal.
    """
    if isinstance(test, Between):
        pairs = [(Operator.GREATER_EQUAL, test.low), (Operator.LESS_EQUAL, test.high)]
        choose: Callable[..., bool] = all
    else:
        pairs, choose = [(test.operator, literal) for literal in test.values], any

    def accepts(value: Value) -> bool:
        given = FileFacts(names=(str(value),), sha256="") if kind is Kind.FILE else value
        return choose(compares(kind, operator, given, literal) for operator, literal in pairs)

    return accepts


def word_search(kind: Kind, text: Text) -> Callable[[str], bool]:
    """Return the function that says whether free text is found in a value of a field of *kind*."""
    if kind is Kind.FILE:
        return lambda value: contains_words(kind, FileFacts(names=(value,), sha256=""), text)
    return lambda value: contains_words(kind, value, text)
