"""Completion of a query that is being typed: what its last word may become.

Words of the language are in the answer. Recorded names and values are not: the answer says which of them
are wanted, because only a ledger has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from prefect_executions.errors import QueryError
from prefect_executions.query.conditions import MAX_CHARACTERS, field_of
from prefect_executions.query.fields import BY_NAME, FIELDS, FLAGS, SOURCES, Kind
from prefect_executions.query.parser import parse_target
from prefect_executions.query.tree import Target, ValueSource
from prefect_executions.query.values import KEYWORDS

_TERM = re.compile(
    r'(?P<target>(?:[^\s()":,<>=~!]|"[^"]*")+(?::(?:[^\s()":,<>=~!]|"[^"]*")+(?=[:<>=~!]))?)'
    r"(?P<operator>:?(?:!=|<=|>=|=|<|>|~)|:)(?P<values>.*)",
    re.DOTALL,
)
_LAST_WORD = re.compile(r'(?:[^\s()"]|"(?:[^"\\]|\\.)*(?:"|\Z))*\Z')


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What may replace the end of a query, from `start` on."""

    start: int
    """The place of `prefix` in the query, from 0."""
    prefix: str
    """What is typed already."""
    words: tuple[str, ...] = ()
    """Fields with their ``:``, keywords, flags or choices that begin with `prefix`."""
    names: ValueSource | None = None
    """Recorded names that are wanted: of params, of metrics, of inputs, or of all of them."""
    values: Target | None = None
    """The field or value whose recorded values are wanted."""


def completion(text: str) -> Completion:
    """Return what the last word of *text* may become; any text has an answer."""
    found = _LAST_WORD.search(text) if len(text) <= MAX_CHARACTERS else None
    word = found[0] if found else ""
    start = len(text) - len(word)
    term = _TERM.fullmatch(word)
    if term is None:
        return _of_a_term(start, word)
    prefix = term["values"].rpartition(",")[2]
    return _of_a_value(term["target"], len(text) - len(prefix), prefix)


def _of_a_term(start: int, prefix: str) -> Completion:
    fields = (f"{field.name}:" for field in FIELDS)
    return Completion(start=start, prefix=prefix, words=_begin((*fields, *KEYWORDS), prefix), names=ValueSource.ANY)


def _of_a_value(name: str, start: int, prefix: str) -> Completion:
    field = BY_NAME.get(name.lower())
    if field is None or field.kind not in {Kind.VALUE, Kind.PRESENCE, Kind.FLAG, Kind.CHOICE}:
        return Completion(start=start, prefix=prefix, values=_target(name))
    if field.kind is Kind.VALUE:
        return Completion(start=start, prefix=prefix, names=SOURCES[field.name])
    if field.kind is Kind.CHOICE:
        return Completion(start=start, prefix=prefix, words=_begin(field.choices, prefix), values=_target(name))
    if field.kind is Kind.FLAG:
        return Completion(start=start, prefix=prefix, words=_begin(FLAGS, prefix))
    source, dot, rest = prefix.partition(".")
    if dot and source.lower() in SOURCES:
        return Completion(start=start + len(source) + 1, prefix=rest, names=SOURCES[source.lower()])
    present = [known.name for known in FIELDS if known.kind not in {Kind.PRESENCE, Kind.FLAG}]
    return Completion(start=start, prefix=prefix, words=_begin(present, prefix), names=ValueSource.ANY)


def _target(name: str) -> Target | None:
    try:
        target = parse_target(name)
    except QueryError:  # half a name, such as a quote that is not closed
        return None
    return None if field_of(target).kind is Kind.LINK else target


def _begin(words: Iterable[str], prefix: str) -> tuple[str, ...]:
    return tuple(word for word in words if word.lower().startswith(prefix.lower()))
