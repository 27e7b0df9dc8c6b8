"""Suggestions for a query that is being typed: words of the language, and recorded names and values with counts."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from prefect_executions.ledger.index.access import Value
from prefect_executions.ledger.index.index import ColumnIndex
from prefect_executions.ledger.index.search import MOST_VALUES, search
from prefect_executions.ledger.rows import time_of
from prefect_executions.query.canonical import canonical_target
from prefect_executions.query.completion import completion
from prefect_executions.query.conditions import MAX_CHARACTERS
from prefect_executions.query.fields import BY_NAME, Kind
from prefect_executions.query.literals import Duration, Text
from prefect_executions.query.tree import Everything, FieldTarget, Target, ValueSource, ValueTarget
from prefect_executions.query.values import written

_EXACT = 1 << 53


class Suggestion(NamedTuple):
    """What a query that is being typed may become."""

    text: str
    """The whole query, with its last word completed."""
    executions: int | None
    """How many executions have the name or value; None for a word of the language."""

    @property
    def description(self) -> str:
        return "" if self.executions is None else f"{self.executions} executions"


def suggestions(index: ColumnIndex, text: str, *, most: int = MOST_VALUES) -> tuple[Suggestion, ...]:
    """Return what the query *text* may become: words of the language, then recorded names and values by frequency."""
    if len(text) > MAX_CHARACTERS:
        return ()
    wanted = completion(text)
    head, prefix = text[: wanted.start], wanted.prefix.lstrip('"')
    words = tuple(Suggestion(head + word, None) for word in wanted.words)
    if wanted.names is None and wanted.values is None:
        return words
    every = search(index.snapshot(), Everything(), index.ledger.related)
    recorded: dict[str, int] = {}
    if wanted.names is not None:
        for source, name, count in every.names(prefix, most=most):
            if wanted.names in {source, ValueSource.ANY}:
                recorded.setdefault(_written_name(name, bare=wanted.names is ValueSource.ANY), count)
    if wanted.values is not None:
        for value, count in every.values(wanted.values, prefix, most=most):
            recorded.setdefault(_written_value(value, wanted.values), count)
    known = set(words)
    return (*words, *(one for word, n in recorded.items() if (one := Suggestion(head + word, n)) not in known))


def _written_name(name: str, *, bare: bool) -> str:
    if bare:
        return canonical_target(ValueTarget(ValueSource.ANY, name))
    return canonical_target(ValueTarget(ValueSource.PARAM, name)).partition(":")[2]


def _written_value(value: Value, target: Target) -> str:
    kind = BY_NAME[target.name].kind if isinstance(target, FieldTarget) else Kind.VALUE
    if isinstance(value, str):
        return written(kind, Text((value,)))
    if kind is Kind.TIME and isinstance(value, int):
        return f"{time_of(value):%Y-%m-%dT%H:%M:%S.%f}"
    if kind is Kind.DURATION and isinstance(value, int):
        return written(kind, Duration(timedelta(microseconds=value)))
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    return str(value).lower()
