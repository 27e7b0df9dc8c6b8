"""The tree of a query on executions: frozen values that the parsers make and the evaluators read.

Law: a tree has no clock. Relative times stay relative in it, and `resolve` makes them
instants, so that a query has one canonical text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, StrEnum

from prefect_executions.query.literals import EARLIEST, LATEST, Literal, RelativeTime, Text, instant


class Operator(Enum):
    """How a condition compares a value with its literals; `match` defines each for each kind of field."""

    CONTAINS = ":"
    """Equal, ignoring case; what a field's kind makes of it: a prefix of an id, a word in a message."""
    EQUAL = "="
    DIFFERENT = "!="
    """There is a value, and it is not `EQUAL` to any of the literals."""
    LESS = "<"
    LESS_EQUAL = "<="
    GREATER = ">"
    GREATER_EQUAL = ">="
    MATCHES = "~"


class ValueSource(StrEnum):
    """Where a value with a name comes from."""

    ANY = "property"
    """A param of the name; if there is none, a metric; if there is none, an input."""
    PARAM = "param"
    METRIC = "metric"
    INPUT = "in"


class Statistic(StrEnum):
    """Which value of a metric; a metric's last value unless another is requested."""

    LAST = "last"
    FIRST = "first"
    MIN = "min"
    MAX = "max"


class Link(StrEnum):
    """How an execution is related to another."""

    PARENT = "parent"
    """It is a child of the other."""
    RERUNS = "reruns"
    """It is a rerun of the other, with equal or changed inputs."""
    USES = "uses"
    """An output of the other is an input of it, by digest."""
    USED_BY = "usedby"
    """An output of it is an input of the other, by digest."""


@dataclass(frozen=True)
class FieldTarget:
    """A field of an execution, by its name in `fields.FIELDS`."""

    name: str


@dataclass(frozen=True)
class ValueTarget:
    """A param, metric or input value, by its name."""

    source: ValueSource
    name: str
    statistic: Statistic | None = None
    """For a metric always set. For `ANY` only if typed: ``accuracy.max`` is a param or an input of this whole name, or
    the maximum of the metric ``accuracy``; None is the last value of a metric. None for a param and an input."""

    @property
    def full_name(self) -> str:
        """The name as it was typed, with the statistic."""
        return self.name if self.statistic is None else f"{self.name}.{self.statistic}"


Target = FieldTarget | ValueTarget
"""What a condition, a sort key or a column reads."""


@dataclass(frozen=True)
class Everything:
    """Matches every execution."""


@dataclass(frozen=True)
class And:
    """All terms match. It has two or more terms, and none is an `And` (`conjunction`)."""

    terms: tuple[QueryTree, ...]


@dataclass(frozen=True)
class Or:
    """A term matches. It has two or more terms, and none is an `Or` (`disjunction`)."""

    terms: tuple[QueryTree, ...]


@dataclass(frozen=True)
class Not:
    """The term does not match; a missing value makes a condition false, so its `Not` is true."""

    term: QueryTree


@dataclass(frozen=True)
class Condition:
    """A value compares with any of the literals; false if there is no value.

    Several literals occur with `CONTAINS`, `EQUAL` and `DIFFERENT` only. A field with several
    values, such as tags, matches if one of the values does.
    """

    target: Target
    operator: Operator
    values: tuple[Literal, ...]


@dataclass(frozen=True)
class Between:
    """A value lies between two literals of one type, both inclusive: ``2026-01-01 TO 2026-01-31`` ends with the day."""

    target: Target
    low: Literal
    high: Literal


@dataclass(frozen=True)
class Has:
    """There is a value: of the field, or of a param, metric or input of this name; null is not a value."""

    target: Target


@dataclass(frozen=True)
class Is:
    """A flag of `fields.FLAGS` is set."""

    flag: str


@dataclass(frozen=True)
class Words:
    """Free text: a field of `fields.searched()` contains it, ignoring case, or an id or digest begins with it.

    A text with wildcards must be the whole value of a field.
    """

    text: Text


@dataclass(frozen=True)
class Related:
    """The execution is related to one whose id begins with one of *ids*."""

    link: Link
    ids: tuple[str, ...]


QueryTree = Everything | And | Or | Not | Condition | Between | Has | Is | Words | Related
"""A query."""


def conjunction(terms: Iterable[QueryTree]) -> QueryTree:
    """Return the tree that matches if all *terms* do: flat, and without an `And` if there is only one."""
    flat = tuple(inner for term in terms for inner in (term.terms if isinstance(term, And) else (term,)))
    return flat[0] if len(flat) == 1 else And(flat) if flat else Everything()


def disjunction(terms: Iterable[QueryTree]) -> QueryTree:
    """Return the tree that matches if one of *terms* does: flat, and without an `Or` if there is only one."""
    flat = tuple(inner for term in terms for inner in (term.terms if isinstance(term, Or) else (term,)))
    return flat[0] if len(flat) == 1 else Or(flat) if flat else Not(Everything())


def leaves(tree: QueryTree) -> Iterator[QueryTree]:
    """Yield the terms of *tree* that are not `And`, `Or` or `Not`, from left to right."""
    if isinstance(tree, And | Or):
        for term in tree.terms:
            yield from leaves(term)
    elif isinstance(tree, Not):
        yield from leaves(tree.term)
    else:
        yield tree


def resolve(tree: QueryTree, now: datetime) -> QueryTree:
    """Return *tree* with each relative time as an instant, counted from *now*; *now* has a time zone."""
    if isinstance(tree, And):
        return And(tuple(resolve(term, now) for term in tree.terms))
    if isinstance(tree, Or):
        return Or(tuple(resolve(term, now) for term in tree.terms))
    if isinstance(tree, Not):
        return Not(resolve(tree.term, now))
    if isinstance(tree, Condition):
        return replace(tree, values=tuple(_resolved(value, now) for value in tree.values))
    if isinstance(tree, Between):
        return replace(tree, low=_resolved(tree.low, now), high=_resolved(tree.high, now))
    return tree


def _resolved(value: Literal, now: datetime) -> Literal:
    if not isinstance(value, RelativeTime):
        return value
    try:
        return instant(now.astimezone(EARLIEST.tzinfo) + value.offset)
    except OverflowError:  # before year 1 or after year 9999
        return instant(LATEST if value.offset.days > 0 else EARLIEST)
