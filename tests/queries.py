"""Random queries, as trees that the parser can make; for the tests of parser, canonical text and evaluators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from random import Random
from typing import Any

from hypothesis import strategies as st

from prefect_executions.lifecycle.status import Status
from prefect_executions.query.conditions import value_target
from prefect_executions.query.fields import FIELDS, FLAGS, OPERATORS, Kind, QueryField, has_order
from prefect_executions.query.literals import (
    Digest,
    Duration,
    Literal,
    Number,
    Regex,
    RelativeTime,
    Size,
    Text,
    TimeRange,
    Truth,
    Version,
)
from prefect_executions.query.match import Facts, FileFacts, MetricFacts
from prefect_executions.query.tree import (
    Between,
    Condition,
    Everything,
    FieldTarget,
    Has,
    Is,
    Link,
    Not,
    Operator,
    QueryTree,
    Related,
    Target,
    ValueSource,
    Words,
    conjunction,
    disjunction,
)
from prefect_executions.query.values import number, time_range

START = datetime(2025, 12, 30)  # noqa: DTZ001 - without a zone, as it is typed
EQUALITIES = {Operator.CONTAINS, Operator.EQUAL, Operator.DIFFERENT}

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
words = st.one_of(
    st.sampled_from(
        ["a", "b", "Ab", "mnist", "AND", "to", "true", "10", "1e3", "inf", "has", "status", 'a"b', "\\", "*"]
    ),
    st.text(letters, max_size=4),
)
filled = words.filter(bool)
names = st.one_of(st.sampled_from(["epochs", "lr", "x.max", "optimizer.name", "status", "metric.x", "in.y"]), filled)


@st.composite
def texts(draw: st.DrawFn, *, empty: bool = True) -> Text:
    first, last = draw(words), draw(words)
    if not draw(st.booleans()):
        return Text((first if empty else draw(filled),))
    parts = (first, *draw(st.lists(filled, max_size=2)), last)
    return Text(parts) if any(parts) else Text(("a", ""))


@st.composite
def numbers(draw: st.DrawFn) -> Number:
    value = draw(
        st.one_of(
            st.integers(-3, 3),
            st.integers(-(2**70), 2**70),
            st.decimals(allow_nan=False, places=3, min_value=-5, max_value=5),
            st.floats(allow_nan=False),
            st.sampled_from(["inf", "-Infinity", "1e3", "0.50", "-0", "1E-7", ".5", "+1"]),
        )
    )
    found = number(str(value))
    assert found is not None, value
    return found


@st.composite
def times(draw: st.DrawFn) -> TimeRange:
    when = (START + draw(st.timedeltas(timedelta(0), timedelta(days=34)))).isoformat(timespec="microseconds")
    length = draw(st.sampled_from([4, 7, 10, 13, 16, 19, 21, 22, 25, 26]))
    zone = draw(st.sampled_from(["", "Z", "+05:30", "-01", "+0045"])) if length > 10 else ""
    found = time_range(when[:length] + zone)
    assert found is not None, when
    return found


spans = st.timedeltas(timedelta(0), timedelta(days=400))
relative = st.timedeltas(timedelta(days=-400), timedelta(days=400)).map(RelativeTime)
digests = st.from_regex(re.compile(r"[0-9a-f]{1,64}"), fullmatch=True).map(Digest)
regexes = st.sampled_from(["a", "(?i)A.b", "^a|b$", r"\d+", '"', "x y", r"\\"]).map(Regex)
plain_texts = words.map(lambda text: Text((text,)))


def not_a_digest(text: Text) -> bool:
    plain = "*".join(text.parts).lower()
    return not plain.startswith("sha256:") and not (len(plain) == 64 and re.fullmatch("[0-9a-f]+", plain))


@cache
def literals(field: QueryField, *, ordered: bool) -> st.SearchStrategy[Any]:
    """Return the literals of a field; those that have an order."""
    text = plain_texts if ordered else texts().filter(lambda text: text.parts != ("", ""))
    by_kind: dict[Kind, st.SearchStrategy[Any]] = {
        Kind.CHOICE: st.sampled_from(
            sorted({value for values in field.choices.values() for value in values} or {""})
        ).map(lambda value: Text((value,))),
        Kind.NUMBER: numbers(),
        Kind.TIME: st.one_of(times(), relative) if ordered else times(),
        Kind.DURATION: spans.map(Duration),
        Kind.SIZE: st.one_of(st.integers(0, 2**63 - 1), st.sampled_from([10**9, 1500])).map(Size),
        Kind.DIGEST: digests,
        Kind.FILE: st.one_of(digests, text.filter(not_a_digest)),
        Kind.VERSION: filled.map(Version),
        Kind.VALUE: st.one_of(numbers(), text, *([] if ordered else [st.booleans().map(Truth)])),
    }
    return by_kind.get(field.kind, text)


@cache
def targets(field: QueryField) -> st.SearchStrategy[Target]:
    if field.kind is not Kind.VALUE:
        return st.just(FieldTarget(field.name))
    source = ValueSource(field.name)
    return st.builds(lambda name, typed: value_target(source, name, typed=typed), names, st.booleans())


COMPARED = frozenset(kind for kind in Kind if OPERATORS[kind] >= EQUALITIES)


@st.composite
def conditions(
    draw: st.DrawFn, kinds: frozenset[Kind] = COMPARED, operators: frozenset[Operator] = frozenset(Operator)
) -> QueryTree:
    """Return a condition of any field of *kinds* with any of its operators."""
    field = draw(st.sampled_from([one for one in FIELDS if one.kind in kinds]))
    target = draw(targets(field))
    operator = draw(st.sampled_from(sorted(OPERATORS[field.kind] & operators, key=lambda one: one.value)))
    if operator is Operator.MATCHES:
        return Condition(target, operator, (draw(regexes),))
    if operator in EQUALITIES:
        values: list[Literal] = draw(st.lists(literals(field, ordered=False), min_size=1, max_size=3, unique=True))
        return Condition(target, operator, tuple(values))
    if has_order(field.kind) and draw(st.booleans()):
        low = draw(literals(field, ordered=True))
        high = draw(literals(field, ordered=True).filter(lambda one: type(one) is type(low) or field.kind is Kind.TIME))
        return Between(target, low, high)
    return Condition(target, operator, (draw(literals(field, ordered=True)),))


@st.composite
def presences(draw: st.DrawFn) -> QueryTree:
    field = draw(st.sampled_from([one for one in FIELDS if one.kind not in {Kind.FLAG, Kind.PRESENCE}]))
    if field.name in {"param", "metric", "in"} and draw(st.booleans()):
        return Has(FieldTarget(field.name))
    return Has(draw(targets(field)))


free = texts(empty=False).filter(lambda text: text.parts != ("", "")).map(Words)
ids = st.lists(filled, min_size=1, max_size=3, unique=True).map(tuple)

terms: st.SearchStrategy[QueryTree] = st.one_of(
    conditions(),
    conditions(),
    presences(),
    free,
    st.sampled_from(sorted(FLAGS)).map(Is),
    st.builds(Related, st.sampled_from(Link), ids),
    st.just(Everything()),
)

trees: st.SearchStrategy[QueryTree] = st.recursive(
    terms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(conjunction),
        st.lists(inner, min_size=2, max_size=3).map(disjunction),
        inner.map(Not),
    ),
    max_leaves=8,
)
"""Any query, as a tree that its canonical text gives again."""


def combined(terms: Sequence[QueryTree], random: Random) -> QueryTree:
    """Return a random tree of some of *terms*."""
    trees = random.sample(terms, random.randint(1, 8))
    while len(trees) > 1:
        inner = [trees.pop() for _ in range(min(len(trees), random.randint(2, 3)))]
        tree = random.choice([conjunction, disjunction])(inner)
        trees.insert(0, Not(tree) if random.random() < 0.3 else tree)
    return trees[0]


instants = st.one_of(
    st.timedeltas(timedelta(0), timedelta(days=34)).map(lambda offset: START.replace(tzinfo=UTC) + offset),
    st.sampled_from([datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 31, 12, tzinfo=UTC)]),
)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
files = st.builds(
    FileFacts,
    names=st.lists(st.one_of(filled, st.sampled_from(["a.csv", "plots/a.PNG"])), min_size=1, max_size=2).map(tuple),
    sha256=hexes,
    size=st.one_of(st.none(), st.integers(0, 2**40)),
    media_type=st.sampled_from([None, "text/csv", "image/png"]),
)
measured = st.one_of(st.integers(-3, 3), st.integers(-(2**70), 2**70), st.floats())
metrics = st.builds(MetricFacts, last=measured, first=measured, min=measured, max=measured)
recorded = st.one_of(st.none(), st.booleans(), measured, words, st.lists(st.integers(), max_size=1))

BY_KIND: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.NAME: words,
    Kind.PROSE: words,
    Kind.ID: filled,
    Kind.DIGEST: hexes,
    Kind.VERSION: st.one_of(words, st.sampled_from(["3.9", "3.11.7", "3.11"])),
    Kind.NUMBER: st.integers(0, 100),
    Kind.TIME: instants,
    Kind.DURATION: spans,
}


RECORDED = [field for field in FIELDS if field.kind in BY_KIND and field.name != "media"]


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    """Return any execution."""
    values: dict[str, tuple[Any, ...]] = {}
    for field in draw(st.lists(st.sampled_from(RECORDED), max_size=5, unique=True)):
        values[field.name] = tuple(draw(st.lists(BY_KIND[field.kind], max_size=2 if field.several else 1)))
    values["status"] = (draw(st.sampled_from(Status)),)
    return Facts(
        fields=values,
        params=draw(st.dictionaries(names, recorded, max_size=3)),
        metrics=draw(st.dictionaries(names, metrics, max_size=3)),
        inputs=draw(st.dictionaries(names, recorded, max_size=3)),
        input_files=tuple(draw(st.lists(files, max_size=2))),
        output_files=tuple(draw(st.lists(files, max_size=2))),
        flags=frozenset(draw(st.sets(st.sampled_from(sorted(FLAGS))))),
        links=draw(st.dictionaries(st.sampled_from(Link), st.frozensets(filled, max_size=2))),
    )


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
