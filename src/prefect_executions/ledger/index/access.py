"""The access to what a condition, a sort key or a column reads: a field, or a named value, of a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from prefect_executions.ledger.index.build import OTHER_TAG, TEXT_TAG, TRUTH_TAG, part_key
from prefect_executions.ledger.index.columns import Mask, SegmentColumn
from prefect_executions.ledger.index.segment import NUMBER, WORDS, Segment, parts_of
from prefect_executions.query.tree import Statistic, ValueSource, ValueTarget

FIELD_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "method": ("method_id",),
    "title": ("method_title",),
    "version": ("method_version",),
    "type": ("method_type",),
    "date": ("first_known",),
    "name": ("flow_run_name",),
    "tag": (part_key("tags", "tag"),),
    "note": (part_key("notes", "note"),),
    "pool": ("work_pool",),
    "host": ("hostname",),
    "deployment": ("deployment_name",),
    "commit": ("code_commit",),
    "code": ("code_sha256",),
    "branch": ("code_branch",),
    "author": ("code_author",),
    "subject": ("code_subject",),
    "remote": ("code_remote",),
    "python": ("python_version",),
    "driver": ("gpu_driver",),
    "cuda": ("cuda_version",),
    "input": (part_key("input_files", "input"), part_key("input_files", "name")),
    "output": (part_key("outputs", "path"),),
    "size": (part_key("outputs", "size"),),
    "media": (part_key("outputs", "media_type"),),
}
"""The columns of the fields whose column has another name, or that have several columns."""

DIGEST_TABLES: Mapping[str, str] = {"input": "input_files", "output": "outputs"}
"""The tables with the digests of a field of files."""

Value = int | float | Decimal | str | bool
"""A value of an execution; a number that no double equals is an int or a Decimal."""

_TABLES = {ValueSource.PARAM: "params", ValueSource.METRIC: "metrics", ValueSource.INPUT: "inputs"}


class ValueLayer(NamedTuple):
    """The values of one source and name: numbers, and tagged words for everything that is not a double."""

    numbers: SegmentColumn | None
    words: SegmentColumn | None

    def present(self, size: int) -> Mask:
        """Return for each row whether it has a value."""
        masks = [column.present() for column in self if column]
        return np.logical_or.reduce(masks) if masks else np.zeros(size, np.bool_)


def field_columns(segment: Segment, name: str) -> list[SegmentColumn]:
    """Return the columns of a field that have a value in *segment*."""
    keys = FIELD_COLUMNS.get(name, (name,))
    return [segment.columns[key] for key in keys if key in segment.columns]


def source_columns(segment: Segment, source: ValueSource) -> list[SegmentColumn]:
    """Return the columns of all named values of a source."""
    tables = _TABLES.values() if source is ValueSource.ANY else (_TABLES[source],)
    names = ((table, name) for table in tables for name in segment.names.get(table, ()))
    columns = (segment.named(table, name, part) for table, name in names for part in (NUMBER, WORDS))
    return [column for column in columns if column]


def value_layers(segment: Segment, target: ValueTarget) -> list[ValueLayer]:
    """Return where the values of *target* are: an execution has the value of the first layer with one."""
    sources = [target.source] if target.source is not ValueSource.ANY else list(_TABLES)
    layers = []
    for source in sources:
        if source is ValueSource.METRIC:
            statistic = target.statistic or Statistic.LAST
            names = [(target.name, part) for part in dict.fromkeys((statistic, Statistic.LAST))]
        else:
            names = [(target.full_name if target.source is ValueSource.ANY else target.name, Statistic.LAST)]
        for name, part in names:
            number, words = parts_of(part)
            layer = ValueLayer(
                segment.named(_TABLES[source], name, number), segment.named(_TABLES[source], name, words)
            )
            if layer.numbers or layer.words:
                layers.append(layer)
    return layers


def is_nan(value: object) -> bool:
    """Return whether *value* is NaN, as a double or a decimal number."""
    return value != value  # noqa: PLR0124  only NaN differs from itself


@lru_cache(maxsize=4096)
def untagged(word: str) -> Value | None:
    """Return the value that a tagged word stands for; None for a list or an object."""
    tag, content = word[0], word[1:]
    if tag == TEXT_TAG:
        return content
    if tag == TRUTH_TAG:
        return content == "1"
    return None if tag == OTHER_TAG else exact_number(content)


def exact_number(text: str) -> int | float | Decimal:
    """Return the number that *text* has, exactly: decimal, or hexadecimal with ``0x``; NaN is a float."""
    if text.lower().lstrip("+-").startswith("0x"):
        return int(text, 16)
    number = Decimal(text)
    if not number.is_finite():
        return float(number)
    return int(number) if number == number.to_integral_value() else number


def column_value(columns: Sequence[SegmentColumn], row: int) -> Value | None:
    """Return the first value that a row has in *columns*."""
    for column in columns:
        value: Value | None = column.value(row)
        if value is not None:
            return value
    return None


def layered_value(layers: Sequence[ValueLayer], row: int) -> Value | None:
    """Return the value of a row; None if it has none, or a list or an object."""
    for numbers, words in layers:
        word = words.value(row) if words else None
        if word is not None:
            return untagged(word)
        number: float | None = numbers.value(row) if numbers else None
        if number is not None:
            return number
    return None
