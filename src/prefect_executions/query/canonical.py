"""The canonical text of a query: one text for each tree.

Law: `parse` of the text gives the tree, and the text of that tree is the text again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from prefect_executions.query.conditions import field_of
from prefect_executions.query.fields import BY_NAME, SOURCES
from prefect_executions.query.tree import (
    And,
    Between,
    Condition,
    FieldTarget,
    Has,
    Is,
    Not,
    Or,
    QueryTree,
    Related,
    Statistic,
    Target,
    ValueSource,
    ValueTarget,
    Words,
)
from prefect_executions.query.values import KEYWORDS, quoted, written, written_text

_PLAIN_NAME = re.compile(r"[\w./+%@-]+")
_BARE_NAME = re.compile(r"[^\W\d][\w./+%@-]*")
_STATISTICS = tuple(f".{statistic}" for statistic in Statistic)


def canonical(tree: QueryTree) -> str:
    """Return the canonical text of *tree*; everything is ``*``."""
    if isinstance(tree, And):
        return " AND ".join(_inside(term, (Or,)) for term in tree.terms)
    if isinstance(tree, Or):
        return " OR ".join(canonical(term) for term in tree.terms)
    if isinstance(tree, Not):
        return f"NOT {_inside(tree.term, (And, Or))}"
    return "".join(_written_leaf(tree))


def _written_leaf(leaf: QueryTree) -> Iterator[str]:
    match leaf:
        case Condition(target, operator, values):
            yield canonical_target(target) + operator.value
            yield ",".join(written(field_of(target).kind, value) for value in values)
        case Between(target, low, high):
            kind = field_of(target).kind
            yield f"{canonical_target(target)}:{written(kind, low)} TO {written(kind, high)}"
        case Has(target):
            yield f"has:{canonical_target(target)}"
        case Is(flag):
            yield f"is:{flag}"
        case Words(text):
            yield written_text(text.parts, plain=not any(":" in part for part in text.parts))
        case Related(link, ids):
            yield f"{link}:{','.join(written_text((one,)) for one in ids)}"
        case _:
            yield "*"


def canonical_target(target: Target) -> str:
    """Return the text of a field or a value, as `parse_target` reads it."""
    if isinstance(target, FieldTarget):
        return target.name
    name = _written_name(target)
    return name if target.source is ValueSource.ANY else f"{target.source}:{name}"


def _inside(term: QueryTree, parenthesised: tuple[type[QueryTree], ...]) -> str:
    text = canonical(term)
    return f"({text})" if isinstance(term, parenthesised) else text


def _written_name(target: ValueTarget) -> str:
    bare = target.source is ValueSource.ANY
    plain = (_BARE_NAME if bare else _PLAIN_NAME).fullmatch(target.name) and not (bare and _is_taken(target))
    if target.statistic is None or (target.source is ValueSource.METRIC and target.statistic is Statistic.LAST):
        ends_in_statistic = target.source in {ValueSource.ANY, ValueSource.METRIC} and target.name.endswith(_STATISTICS)
        plain = plain and not ends_in_statistic and target.name not in KEYWORDS
        return target.name if plain else quoted(target.name)
    return f"{target.name if plain else quoted(target.name)}.{target.statistic}"


def _is_taken(target: ValueTarget) -> bool:
    head, dot, _ = target.full_name.partition(".")
    return (
        target.full_name.lower() in BY_NAME
        or target.full_name in KEYWORDS
        or bool(dot and (head.lower() in SOURCES or head.lower() == "input"))
    )
