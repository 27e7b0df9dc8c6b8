"""Hints on a query that is valid but probably not meant: an unknown name, a keyword in lower case.

A misspelt field is read as the name of a param, so only the names that were ever recorded show the mistake.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from prefect_executions.query.fields import BY_NAME, nearest
from prefect_executions.query.tree import (
    Between,
    Condition,
    Has,
    QueryTree,
    ValueSource,
    ValueTarget,
    Words,
    leaves,
)
from prefect_executions.query.values import KEYWORDS

_SOURCES = {
    ValueSource.ANY: "param, metric or input",
    ValueSource.PARAM: "param",
    ValueSource.METRIC: "metric",
    ValueSource.INPUT: "input",
}


def hints(tree: QueryTree, names: Mapping[ValueSource, Collection[str]]) -> tuple[str, ...]:
    """Return a sentence for each thing in *tree* that is probably a mistake, from left to right.

    *names* has the recorded names of params, metrics and inputs.
    """
    return tuple(dict.fromkeys(hint for leaf in leaves(tree) for hint in _hints_on(leaf, names)))


def _hints_on(leaf: QueryTree, names: Mapping[ValueSource, Collection[str]]) -> Iterator[str]:
    if isinstance(leaf, Condition | Between | Has) and isinstance(leaf.target, ValueTarget):
        yield from _unknown_name(leaf.target, names)
    elif isinstance(leaf, Words) and (leaf.text.exact or "").upper() in KEYWORDS and leaf.text.exact not in KEYWORDS:
        keyword = leaf.text.parts[0]
        yield f"'{keyword}' is searched as a word; the keyword is {keyword.upper()}"


def _unknown_name(target: ValueTarget, names: Mapping[ValueSource, Collection[str]]) -> Iterator[str]:
    is_any = target.source is ValueSource.ANY
    known = {name for source, found in names.items() if is_any or source is target.source for name in found}
    if target.name in known or target.full_name in known:
        return
    similar = nearest(target.name, (*known, *(BY_NAME if is_any else ())))
    advice = f"; did you mean '{similar}'?" if similar else ""
    yield f"no {_SOURCES[target.source]} has the name '{target.name}'{advice}"
