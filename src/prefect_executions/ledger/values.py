"""The columns of JSON values and of metrics (pure functions).

A number that a double cannot hold is kept beside it as text: NaN, which SQLite cannot
store, and the digits of a large integer. The bundle always has the original.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from prefect_executions.documents import json_value
from prefect_executions.executions.record import Metric
from prefect_executions.executions.value_types import is_marker

Stored = str | int | float | bool | bytes | None
"""The value of a column, in both databases."""

Columns = tuple[Stored, ...]

VALUE_LIMIT = 64 * 1024
"""Longer JSON values are only in the bundle: they are useless for search, and every listing would transfer them."""

LEAVES = 256
"""The most leaves of an execution; deeper and later ones are only in the value's JSON."""

_LONGEST_NAME = 500
_DIGEST = re.compile("[0-9a-f]{64}")
_INVALID_TEXT = re.compile("[\0\ud800-\udfff]")
_LONGEST = 10**4300  # the limit of Python's conversion of integers to decimal text


def clean(text: str) -> str:
    """Return *text* with U+FFFD in place of each character that a database refuses."""
    return _INVALID_TEXT.sub("\ufffd", text)


def digest_bytes(digest: str | None) -> bytes | None:
    """Return the bytes of a SHA-256 digest in hexadecimal; None for another text, which documents may have."""
    return bytes.fromhex(digest) if digest and _DIGEST.fullmatch(digest) else None


def value_columns(name: str, value: Any) -> Columns:
    """Return the columns name, json, number, text and truth of a JSON value.

    JSON has no infinity and no NaN, so documents write them as text. They are text here
    too, whether the record comes from a run or from its bundle.
    """
    plain = json_value(value)
    json_text = _json(plain)
    stored_json = json_text if len(json_text) <= VALUE_LIMIT else None
    if isinstance(plain, dict) and is_marker(plain) and "value" in plain:
        return clean(name), stored_json, *_python_value(plain["python"], plain["value"], stored=bool(stored_json))
    if isinstance(plain, bool):
        return clean(name), stored_json, None, None, plain
    if isinstance(plain, str):
        return clean(name), stored_json, None, stored_json and clean(plain), None
    if isinstance(plain, float) and not math.isfinite(plain):
        return clean(name), stored_json, None, json_text.strip('"'), None
    number = double(plain) if isinstance(plain, int | float) else None
    return clean(name), stored_json, number, None, None


def _python_value(kind: str, value: Any, *, stored: bool) -> tuple[float | None, str | None, bool | None]:
    """Return the columns number, text and truth of a value that JSON lacks; NaN is text, as SQLite cannot store it."""
    if isinstance(value, bool):
        return None, None, value
    if isinstance(value, int | float):
        return double(value), None, None
    if not isinstance(value, str) or not stored:
        return None, None, None
    if kind in {"int", "float"}:
        number = double(int(value, 16)) if kind == "int" else float(value)
        return None if math.isnan(number) else number, clean(value), None
    return None, clean(value), None


def _json(plain: Any) -> str:
    try:
        return to_json(plain, inf_nan_mode="strings").decode()
    except PydanticSerializationError:  # a lone surrogate: JSON can escape it, UTF-8 cannot encode it
        return json.dumps(plain, separators=(",", ":"))


def leaf_rows(nested: Mapping[str, Mapping[str, Any]]) -> list[Columns]:
    """Return the leaves of mappings inside values, by dotted names such as ``optimizer.lr``, at most `LEAVES`.

    *nested* has the values by table. The shallow leaves of a table come first. A list is a
    leaf. A value that is not a mapping, or is longer than `VALUE_LIMIT`, has no leaves.
    """
    return list(islice(chain.from_iterable(_leaves(*part) for part in nested.items()), LEAVES))


def _leaves(source: str, values: Mapping[str, Any]) -> Iterator[Columns]:
    level = [(name, branch) for name, value in values.items() if (branch := _branch(value)) and _is_stored(value)]
    while level:
        deeper: list[tuple[str, dict[str, Any]]] = []
        for name, branch in level:
            for key, value in branch.items():
                path = f"{name}.{key}"
                if inner := _branch(value):
                    deeper.append((path, inner))
                elif len(path) <= _LONGEST_NAME:
                    yield source, *value_columns(path, value)
        level = deeper


def _branch(value: Any) -> dict[str, Any] | None:
    """Return the members of a mapping, also of one that JSON lacks, such as a dataclass; None for another value."""
    plain = json_value(value) if isinstance(value, Mapping) else None
    if plain is not None and is_marker(plain):
        plain = plain.get("value")
    return plain if isinstance(plain, dict) else None


def _is_stored(value: Any) -> bool:
    return len(_json(json_value(value))) <= VALUE_LIMIT


def metric_rows(metrics: Iterable[Metric]) -> Iterator[Columns]:
    """Yield one row for each name, in the order of the first values.

    The steps stay in the bundle: a metric with 100,000 steps has one row.
    """
    values: dict[str, list[int | float]] = {}
    for metric in metrics:
        values.setdefault(clean(metric.name), []).append(metric.value)
    for name, series in values.items():
        yield name, *summary(series)


def summary(series: Sequence[int | float]) -> Columns:
    """Return the columns count, first, last, min and max of a metric, and their exact texts.

    First and last are in the order of the log. NaN counts as a value, but not for min and
    max; infinities are smaller or larger than every number. Without any number, min and
    max are NULL.
    """
    numbers = [value for value in series if not (isinstance(value, float) and math.isnan(value))]
    chosen = (series[0], series[-1], min(numbers, default=None), max(numbers, default=None))
    return len(series), *(_as_double(value) for value in chosen), *(_exact(value) for value in chosen)


def _as_double(value: float | None) -> float | None:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else double(value)


def _exact(value: float | None) -> str | None:
    """Return the text of a value that its double does not have: NaN, and a large integer."""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else None
    if value is None or double(value) == value:
        return None
    return str(value) if abs(value) < _LONGEST else hex(value)


def double(number: float) -> float:
    """Return *number* as a double; too large an integer becomes an infinity."""
    try:
        return float(number)
    except OverflowError:  # too large for a double: infinity sorts correctly, and `json` or `exact` has the digits
        return math.inf if number > 0 else -math.inf
