"""What a query means: whether a tree matches one execution, by the simplest evaluation that there is.

It defines the language; a faster evaluator must agree with it. A missing value makes a
condition false, so its `Not` is true.
"""

from __future__ import annotations

import operator as comparison
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from prefect_executions.query.conditions import EQUALITIES, field_of
from prefect_executions.query.fields import Kind, searched
from prefect_executions.query.literals import (
    Digest,
    Duration,
    Literal,
    Number,
    Regex,
    Size,
    Text,
    TimeRange,
    Truth,
    Version,
    as_double,
)
from prefect_executions.query.tree import (
    And,
    Between,
    Condition,
    Everything,
    FieldTarget,
    Has,
    Is,
    Link,
    Not,
    Operator,
    Or,
    QueryTree,
    Related,
    Statistic,
    Target,
    ValueSource,
    ValueTarget,
    Words,
)
from prefect_executions.query.values import compiled

SHORTEST_FREE_ID = 4
"""Free text finds an id or a digest by its beginning if it has at least this many characters."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """An input or output file."""

    names: tuple[str, ...]
    """What it is found by: its path or name, and for an input also the name of the input."""
    sha256: str
    size: int | None = None
    media_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class MetricFacts:
    """The statistics of a metric; each may be NaN or infinite."""

    last: int | float
    first: int | float
    min: int | float
    max: int | float


FieldValue = str | int | float | Decimal | bool | datetime | timedelta | FileFacts
"""A value of a field: a text, a number, a time with a zone, a duration or a file."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a query can ask about one execution."""

    fields: Mapping[str, tuple[FieldValue, ...]] = field(default_factory=dict)
    """The values of each field of `fields.FIELDS` that is not below; a field may be missing or empty."""
    params: Mapping[str, object] = field(default_factory=dict)
    """JSON values; members of nested params have dotted names."""
    metrics: Mapping[str, MetricFacts] = field(default_factory=dict)
    inputs: Mapping[str, object] = field(default_factory=dict)
    """The JSON values of inputs."""
    input_files: tuple[FileFacts, ...] = ()
    output_files: tuple[FileFacts, ...] = ()
    flags: frozenset[str] = frozenset()
    links: Mapping[Link, frozenset[str]] = field(default_factory=dict)
    """The ids of the executions that it is related to."""


def matches(tree: QueryTree, facts: Facts) -> bool:
    """Return whether *tree*, after `resolve`, matches an execution."""
    match tree:
        case And(terms):
            return all(matches(term, facts) for term in terms)
        case Or(terms):
            return any(matches(term, facts) for term in terms)
        case Not(term):
            return not matches(term, facts)
        case Everything():
            return True
        case _:
            return _LEAVES[type(tree)](tree, facts)


def _matches_condition(condition: Condition, facts: Facts) -> bool:
    values = values_of(condition.target, facts)
    kind = field_of(condition.target).kind
    if condition.operator is Operator.DIFFERENT:
        equal = any(compares(kind, Operator.EQUAL, value, one) for value in values for one in condition.values)
        return bool(values) and not equal
    return any(compares(kind, condition.operator, value, one) for value in values for one in condition.values)


def _matches_range(between: Between, facts: Facts) -> bool:
    kind = field_of(between.target).kind
    return any(
        compares(kind, Operator.GREATER_EQUAL, value, between.low)
        and compares(kind, Operator.LESS_EQUAL, value, between.high)
        for value in values_of(between.target, facts)
    )


def _is_related(related: Related, facts: Facts) -> bool:
    known = facts.links.get(related.link, frozenset())
    return any(_begins(known_id, start) for known_id in known for start in related.ids)


def _has_words(words: Words, facts: Facts) -> bool:
    return any(
        contains_words(one.kind, value, words.text)
        for one in searched()
        for value in values_of(FieldTarget(one.name), facts)
    )


_LEAVES: dict[type[QueryTree], Callable[..., bool]] = {
    Condition: _matches_condition,
    Between: _matches_range,
    Has: lambda tree, facts: bool(values_of(tree.target, facts)),
    Is: lambda tree, facts: tree.flag in facts.flags,
    Words: _has_words,
    Related: _is_related,
}


def values_of(target: Target, facts: Facts) -> tuple[object, ...]:
    """Return the values that *target* has for an execution; none if it is missing or null."""
    found = (
        _field_values(target.name, facts)
        if isinstance(target, FieldTarget)
        else [_SOURCES[target.source](target, facts)]
    )
    return tuple(value for value in found if value is not None)


def _field_values(name: str, facts: Facts) -> Iterable[object]:
    files: dict[str, Iterable[object]] = {
        "input": facts.input_files,
        "output": facts.output_files,
        "size": (file.size for file in facts.output_files),
        "media": (file.media_type for file in facts.output_files),
        "param": facts.params.values(),
        "metric": facts.metrics.values(),
        "in": facts.inputs.values(),
    }
    if name in files:
        return files[name]
    return facts.links.get(Link(name), ()) if name in set(Link) else facts.fields.get(name, ())


def _metric(target: ValueTarget, facts: Facts) -> object:
    metric = facts.metrics.get(target.name)
    return metric and getattr(metric, target.statistic or Statistic.LAST)


def _first_value(target: ValueTarget, facts: Facts) -> object:
    found = (facts.params.get(target.full_name), _metric(target, facts), facts.inputs.get(target.full_name))
    return next((value for value in found if value is not None), None)


_SOURCES: dict[ValueSource, Callable[[ValueTarget, Facts], object]] = {
    ValueSource.ANY: _first_value,
    ValueSource.PARAM: lambda target, facts: facts.params.get(target.name),
    ValueSource.METRIC: _metric,
    ValueSource.INPUT: lambda target, facts: facts.inputs.get(target.name),
}


def compares(kind: Kind, operator: Operator, value: object, literal: Literal) -> bool:
    """Return whether one *value* of a field of *kind* compares with *literal*; `DIFFERENT` is not `EQUAL`."""
    if operator is Operator.MATCHES:
        return isinstance(literal, Regex) and any(_searches(literal, text) for text in _texts(value))
    if operator is Operator.DIFFERENT:
        return not compares(kind, Operator.EQUAL, value, literal)
    if operator in EQUALITIES:
        return _EQUAL[kind](value, literal, operator)
    return _is_ordered(operator, value, literal)


def contains_words(kind: Kind, value: object, words: Text) -> bool:
    """Return whether free text finds one *value* of a field of *kind*: inside a text, or as the beginning of an id."""
    candidates = (value.sha256, *value.names) if isinstance(value, FileFacts) else tuple(_texts(value))
    if words.exact is None:
        return any(words.matches(text, ignore_case=True) for text in candidates)
    if kind in {Kind.ID, Kind.DIGEST}:
        return len(words.exact) >= SHORTEST_FREE_ID and any(_begins(text, words.exact) for text in candidates)
    if isinstance(value, FileFacts) and len(words.exact) >= SHORTEST_FREE_ID and _begins(value.sha256, words.exact):
        return True
    return any(words.exact.casefold() in text.casefold() for text in _texts(value))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, FileFacts):
        yield from value.names
    elif isinstance(value, str):
        yield value


def _begins(text: str, start: str) -> bool:
    return text.casefold().startswith(start.casefold())


def _searches(regex: Regex, text: str) -> bool:
    without_surrogates = text.encode("utf-8", "replace").decode("utf-8")
    return compiled(regex.pattern).search(without_surrogates) is not None


def _equal(value: object, literal: Literal, _operator: Operator) -> bool:
    match value, literal:
        case datetime(), TimeRange(since, until):
            return since <= value < until
        case timedelta(), Duration(duration):
            return value == duration
        case int(), Size(size):
            return value == size
        case ((int() | float() | Decimal()), Number()):
            return _compares_number(comparison.eq, value, literal)
    return False


def _compares_number(compare: Callable[[Any, Any], bool], value: float | Decimal, literal: Number) -> bool:
    """Compare two whole numbers exactly, and others as doubles: 0.1 is the double that was recorded for 0.1."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int) and isinstance(literal.value, int):
        return compare(value, literal.value)
    return compare(as_double(value), literal.double)


def _equal_text(value: object, literal: Literal, operator: Operator) -> bool:
    ignore_case = operator is Operator.CONTAINS
    return isinstance(value, str) and isinstance(literal, Text) and literal.matches(value, ignore_case=ignore_case)


def _equal_choice(value: object, literal: Literal, _operator: Operator) -> bool:
    return _equal_text(value, literal, Operator.CONTAINS)


def _equal_prose(value: object, literal: Literal, operator: Operator) -> bool:
    if operator is Operator.CONTAINS and isinstance(literal, Text) and literal.exact is not None:
        return isinstance(value, str) and literal.exact.casefold() in value.casefold()
    return _equal_text(value, literal, operator)


def _equal_id(value: object, literal: Literal, operator: Operator) -> bool:
    if operator is Operator.CONTAINS and isinstance(literal, Text) and literal.exact is not None:
        return isinstance(value, str) and _begins(value, literal.exact)
    return _equal_text(value, literal, operator)


def _equal_digest(value: object, literal: Literal, _operator: Operator) -> bool:
    return isinstance(value, str) and isinstance(literal, Digest) and value.startswith(literal.prefix)


def _equal_file(value: object, literal: Literal, operator: Operator) -> bool:
    if not isinstance(value, FileFacts):
        return False
    if isinstance(literal, Digest):
        return _equal_digest(value.sha256, literal, operator)
    names = {name for full in value.names for name in (full, full.rpartition("/")[2])}
    return any(_equal_text(name, literal, operator) for name in names)


def _equal_version(value: object, literal: Literal, operator: Operator) -> bool:
    if not (isinstance(value, str) and isinstance(literal, Version)):
        return _equal_text(value, literal, operator)
    if operator is Operator.EQUAL:
        return value == literal.text
    key = version_key(literal.text)
    return version_key(value)[: len(key)] == key


def _equal_value(value: object, literal: Literal, operator: Operator) -> bool:
    if isinstance(value, bool) or not isinstance(value, str):
        return (literal == Truth(value)) if isinstance(value, bool) else _equal(value, literal, operator)
    match literal:
        case Number(text=text):
            return _equal_text(value, Text((text,)), operator)
        case Truth(truth):
            return value.casefold() == str(truth).casefold()
        case _:
            return _equal_text(value, literal, operator)


_EQUAL: dict[Kind, Callable[[object, Literal, Operator], bool]] = {
    Kind.NAME: _equal_text,
    Kind.PROSE: _equal_prose,
    Kind.CHOICE: _equal_choice,
    Kind.ID: _equal_id,
    Kind.DIGEST: _equal_digest,
    Kind.FILE: _equal_file,
    Kind.VERSION: _equal_version,
    Kind.NUMBER: _equal,
    Kind.TIME: _equal,
    Kind.DURATION: _equal,
    Kind.SIZE: _equal,
    Kind.VALUE: _equal_value,
}


def _is_ordered(operator: Operator, value: object, literal: Literal) -> bool:
    match value, literal:
        case datetime(), TimeRange(since, until):
            # `<=` and `>` compare with the end, which is exclusive.
            turned = {Operator.LESS_EQUAL: Operator.LESS, Operator.GREATER: Operator.GREATER_EQUAL}.get(operator)
            return _IN_ORDER[turned](value, until) if turned else _IN_ORDER[operator](value, since)
        case (timedelta(), Duration(other)) | (int(), Size(other)) | (str(), Text((other,))):
            return _IN_ORDER[operator](value, other)
        case str(), Version(text):
            return _IN_ORDER[operator](version_key(value), version_key(text))
        case ((int() | float() | Decimal()), Number()):
            return _compares_number(_IN_ORDER[operator], value, literal)
    return False


_IN_ORDER: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.LESS: comparison.lt,
    Operator.LESS_EQUAL: comparison.le,
    Operator.GREATER: comparison.gt,
    Operator.GREATER_EQUAL: comparison.ge,
}


def version_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return what a version is ordered by: its numbers and words, ``3.10rc1`` as 3, 10, rc, 1.

    A number is greater than a word; numbers compare by their size, however many digits they have.
    """
    found = re.findall(r"[0-9]+|[^\W\d_]+", text.casefold())
    return tuple(
        (1, len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (0, 0, part) for part in found
    )
