"""The masks of a query: for each row of a segment, whether a tree matches its execution.

Law: the masks select exactly the executions that the naive evaluator (`query.match`) accepts. A text is
compared by its rules, once for each distinct word; numbers are compared as arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial, reduce

import numpy as np

from prefect_executions.ledger.index.access import (
    DIGEST_TABLES,
    Value,
    field_columns,
    source_columns,
    untagged,
    value_layers,
)
from prefect_executions.ledger.index.build import part_key
from prefect_executions.ledger.index.columns import ColumnKind, Mask, SegmentColumn
from prefect_executions.ledger.index.ranges import doubles, in_ranges, integer_ranges
from prefect_executions.ledger.index.rules import Test, acceptance, word_search
from prefect_executions.ledger.index.segment import ODD_IDS, Segment, SegmentKeys
from prefect_executions.query.fields import BY_NAME, LINKS, SOURCES, Kind, searched
from prefect_executions.query.literals import Digest, Literal, Text
from prefect_executions.query.match import SHORTEST_FREE_ID
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
    Target,
    ValueTarget,
    Words,
)

RelatedIds = Callable[[Link, tuple[str, ...]], Collection[str]]
"""Returns the ids of the executions that are related to those whose ids begin with one of the texts."""

_HEX = frozenset("0123456789abcdef")
_DIGEST = 64
_UUID = 32

_FLAG_COLUMNS = {"archived": "archive", "dirty": "code_dirty"}
"""The columns of flags with another name; a text has to be the name of the flag."""
_TIMES = frozenset({"imported"})

_MANY = 2_000
"""A dictionary with more words is searched for a part of the text first."""


def mask_of(segment: Segment, live: Mask | None, tree: QueryTree, related: RelatedIds) -> Mask | None:
    """Return for each row of *segment* whether *tree* matches it and it is *live*; None if all rows do."""
    if isinstance(tree, Everything):
        return live
    mask = _Masks(segment, related).of(tree)
    return mask if live is None else mask & live


class _Masks:
    """The masks of the terms of a query on one segment."""

    def __init__(self, segment: Segment, related: RelatedIds) -> None:
        self._segment, self._related = segment, related

    def of(self, tree: QueryTree) -> Mask:  # noqa: C901, PLR0911  one case for each kind of term
        """Return the mask of *tree*, which the caller may change."""
        match tree:
            case Everything():
                return np.ones(self._segment.size, np.bool_)
            case And(terms):
                return reduce(np.logical_and, map(self.of, terms))
            case Or(terms):
                return reduce(np.logical_or, map(self.of, terms))
            case Not(term):
                return ~self.of(term)
            case Has(target):
                return self._has(target)
            case Is(flag):
                return self._is(flag)
            case Words(text):
                return self._words(text)
            case Related(link, ids):
                return self._segment.mask_of(sorted(self._related(link, ids)))
            case Condition(operator=Operator.DIFFERENT):
                return self._different(tree)
            case Condition() | Between():
                if isinstance(tree.target, ValueTarget):
                    return self._value(tree, tree.target)
                return self._field(tree, tree.target)

    # --- fields ------------------------------------------------------------------

    def _field(self, test: Test, target: FieldTarget) -> Mask:
        kind = BY_NAME[target.name].kind
        accepts = acceptance(kind, test)
        if target.name == "id":
            return self._where_id(accepts, _sought(test))
        mask = np.zeros(self._segment.size, np.bool_)
        digests = isinstance(test, Condition) and all(isinstance(one, Digest) for one in test.values)
        named = target.name in DIGEST_TABLES and digests  # no name of a file is a digest
        for column in () if named else field_columns(self._segment, target.name):
            if column.kind is ColumnKind.TEXT:
                mask |= column.where_words(_chosen(column, accepts, _sought(test)))
            else:
                mask |= column.where(partial(in_ranges, integer_ranges(test)))
        if target.name in DIGEST_TABLES and isinstance(test, Condition):
            for literal in test.values:
                if isinstance(literal, Digest):
                    mask |= self._where_digest(target.name, literal.prefix)
        return mask

    def _where_id(self, matches: Callable[[str], bool], sought: Sequence[Literal]) -> Mask:
        segment = self._segment
        mask = np.zeros(segment.size, np.bool_)
        starts = [one.parts[0].casefold() for one in sought if isinstance(one, Text)]
        candidates = np.arange(segment.size)
        if sought and len(starts) == len(sought) and all(starts):
            near = [segment.keys.beginning(digits) for start in starts if (digits := _hex_digits(start))]
            candidates = np.flatnonzero(reduce(np.logical_or, near, mask))
        for row in candidates.tolist():
            mask[row] = matches(segment.id(row))
        odd = segment.columns.get(ODD_IDS)
        if odd:
            mask[odd.present()] = False
            mask |= odd.where_words(odd.texts.where(matches))
        return mask

    def _where_digest(self, name: str, prefix: str) -> Mask:
        table = DIGEST_TABLES[name]
        high, low = (self._segment.columns.get(part_key(table, half)) for half in ("high", "low"))
        if high is None or low is None:
            return np.zeros(self._segment.size, np.bool_)
        return high.spread(SegmentKeys(high.data, low.data).beginning(prefix))

    def _different(self, test: Condition) -> Mask:
        """Return for each row whether it has a value and none is equal."""
        return self._has(test.target) & ~self.of(replace(test, operator=Operator.EQUAL))

    def _has(self, target: Target) -> Mask:
        segment = self._segment
        nothing = np.zeros(segment.size, np.bool_)
        if isinstance(target, ValueTarget):
            return reduce(
                np.logical_or, (each.present(segment.size) for each in value_layers(segment, target)), nothing
            )
        if target.name == "id":
            return ~nothing
        if target.name in LINKS:
            return segment.mask_of(sorted(self._related(LINKS[target.name], ())))
        if target.name in SOURCES:
            columns = source_columns(segment, SOURCES[target.name])
        else:
            columns = field_columns(segment, target.name)
            if target.name in DIGEST_TABLES:
                digests = segment.columns.get(part_key(DIGEST_TABLES[target.name], "high"))
                columns += [digests] if digests else []
        return reduce(np.logical_or, (column.present() for column in columns), nothing)

    def _is(self, flag: str) -> Mask:
        key = _FLAG_COLUMNS.get(flag, flag)
        column = self._segment.columns.get(key)
        if column is None:
            return np.zeros(self._segment.size, np.bool_)
        if column.kind is ColumnKind.TEXT:
            return column.where_words(column.texts.where(flag.__eq__))
        return column.present() if flag in _TIMES else column.where(lambda truths: truths == 1)

    def _words(self, text: Text) -> Mask:
        mask = np.zeros(self._segment.size, np.bool_)
        digits = text.parts[0].casefold() if text.parts[1:] in {(), ("",)} else ""
        for field in searched():
            matches = word_search(field.kind, text)
            if field.name == "id":
                mask |= self._where_id(matches, (text,))
                continue
            for column in field_columns(self._segment, field.name):
                mask |= column.where_words(_chosen(column, matches, (text,)))
            is_prefix = digits and len(digits) <= _DIGEST and set(digits) <= _HEX
            if field.name in DIGEST_TABLES and is_prefix and (text.exact is None or len(digits) >= SHORTEST_FREE_ID):
                mask |= self._where_digest(field.name, digits)
        return mask

    # --- named values ------------------------------------------------------------

    def _value(self, test: Test, target: ValueTarget) -> Mask:
        mask = np.zeros(self._segment.size, np.bool_)
        accepts = acceptance(Kind.VALUE, test)
        for layer in reversed(value_layers(self._segment, target)):
            for column in layer:
                if column is None:
                    continue
                if column.kind is ColumnKind.TEXT:
                    found = column.where_words(_chosen(column, partial(_tagged_accepts, accepts), _sought(test)))
                else:
                    found = column.where(partial(doubles, test))
                if mask.any():
                    mask &= ~column.present()
                mask |= found
        return mask


def _sought(test: Test) -> tuple[Literal, ...]:
    """Return the literals that a matching text has to contain, if all are texts."""
    if isinstance(test, Between) or test.operator not in {Operator.CONTAINS, Operator.EQUAL}:
        return ()
    return test.values


def _hex_digits(prefix: str) -> str | None:
    """Return the digits with which a UUID begins if *prefix* can begin its text, or None."""
    digits = prefix.lower().replace("-", "")
    return digits if digits and len(digits) <= _UUID and set(digits) <= _HEX else None


def _tagged_accepts(accepts: Callable[[Value], bool], word: str) -> bool:
    value = untagged(word)
    return value is not None and accepts(value)


def _chosen(column: SegmentColumn, matches: Callable[[str], bool], sought: Sequence[Literal]) -> Mask:
    """Return the words of *column* that match; among many, only those with the longest part of a text are tried."""
    words = column.texts
    if len(words) < _MANY or not sought or not all(isinstance(one, Text) for one in sought):
        return words.where(matches)
    parts = [max(one.parts, key=len).casefold() for one in sought if isinstance(one, Text)]
    if not all(parts):
        return words.where(matches)
    return words.where(matches, np.unique(np.concatenate([words.containing(part) for part in parts])))
