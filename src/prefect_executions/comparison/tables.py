"""Compares two tables, of comma or tab separated values, cell by cell.

Law: cells are compared as numbers only in a column of numbers, so that a code or a digest
that looks like a number remains text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from prefect_executions.comparison.numbers import equal_numbers, number, relative_difference
from prefect_executions.comparison.results import MAX_VALUES, Incomparable, Result, short, summary
from prefect_executions.comparison.text import decoded
from prefect_executions.comparison.verdict import Agreement
from prefect_executions.methods.model import Comparison

_Table = list[list[str]]

_MISSING = frozenset({"", "-", "--", "?", "*", "n/a", "na", "<na>", "nd", "n.d.", "none", "null", "nat", "missing"})
"""What a column of numbers may contain instead of a number, in lower case."""


def compare_tables(before: bytes, after: bytes, comparison: Comparison, delimiter: str) -> Result:
    """Compare two tables.

    Raises:
        Incomparable: If either is not a table in UTF-8 or UTF-16.
    """
    first, second = _parsed(before, after, delimiter)
    head, rows, others = _split_header(first, second)
    shapes = tuple(_shape_drift(first, second, head, rows, others))
    if shapes:
        return Result(Agreement.DIFFERS, shapes)
    differing: list[str] = []
    volatile: list[str] = []
    longer = list(zip(rows, others, strict=True))
    for index in range(max(map(len, rows), default=0)):
        name = head[index] if head and index < len(head) else str(index + 1)
        longer = [pair for pair in longer if len(pair[0]) > index]  # a row that is too short is not looked at again
        words = _column_drift(name, [_Cell(old[index], new[index]) for old, new in longer], len(rows), comparison)
        if comparison.is_volatile_part(name):
            volatile += [f"{message} (volatile)" for message in words]
        else:
            differing += words
    return summary(differing, volatile, "column", comparison)


def _parsed(before: bytes, after: bytes, delimiter: str) -> tuple[_Table, _Table]:
    texts = [decoded(data) for data in (before, after)]
    if None in texts:
        raise Incomparable("it is not text in UTF-8")
    if delimiter == "\t" and len({text.count('"') for text in texts if text}) > 1:
        raise Incomparable("its quotation marks differ, which may be a part of the values of a TSV table")
    if max(_size(data, delimiter.encode()) for data in (before, after)) > MAX_VALUES:
        raise Incomparable(f"it may have more than {MAX_VALUES} values")
    try:
        first, second = (
            list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)) for text in texts
        )
    except csv.Error as error:
        raise Incomparable(f"it is not a table: {error}") from error
    return first, second


def _size(data: bytes, delimiter: bytes) -> int:
    """Return an upper bound for the number of rows and cells together, without parsing *data*."""
    return 2 * max(data.count(b"\n"), data.count(b"\r")) + data.count(delimiter)


def _split_header(first: _Table, second: _Table) -> tuple[list[str] | None, _Table, _Table]:
    """Split off the header: a common first row that contains no number."""
    if first and second and first[0] == second[0] and not any(number(cell) is not None for cell in first[0]):
        return first[0], first[1:], second[1:]
    return None, first, second


def _shape_drift(first: _Table, second: _Table, head: list[str] | None, rows: _Table, others: _Table) -> Iterator[str]:
    if head is None and first and second and len(first[0]) != len(second[0]):
        yield f"it had {len(first[0])} columns and has {len(second[0])}"
    elif len(rows) != len(others):
        yield f"it had {len(rows)} rows and has {len(others)}"
    elif any(len(old) != len(new) for old, new in zip(rows, others, strict=True)):
        yield "the lengths of its rows differ"


class _Cell(NamedTuple):
    before: str
    after: str


def _column_drift(name: str, cells: Sequence[_Cell], rows: int, comparison: Comparison) -> Iterator[str]:
    changed = [cell for cell in cells if cell.before != cell.after]
    if not changed:
        return
    word = _word_of(cells, comparison)
    differing, largest, others = 0, 0.0, 0
    for cell in changed:
        old, new = (None, None) if word is not None else map(number, cell)
        if old is None or new is None:
            differing, others = differing + 1, others + 1
        elif not equal_numbers(old, new, comparison):
            differing, largest = differing + 1, max(largest, relative_difference(old, new))
    if differing:
        words = f"column {short(name)} differs in {differing} of {rows} rows"
        numeric = f", largest relative difference {largest:.2g}" if differing > others else ""
        yield f"{words}{numeric}{_why_text(word, changed)}"


def _word_of(cells: Sequence[_Cell], comparison: Comparison) -> str | None:
    """Return a cell that makes this a column of text, or None in a column of numbers.

    The first cell may be a heading that is not that of a header, because another heading
    is a number. With a tolerance, the numbers of the column are known to be numbers, and
    a row of units may follow the heading.
    """
    headings = 2 if comparison.tolerance or comparison.absolute_tolerance else 1
    common = takewhile(lambda cell: cell.before == cell.after and number(cell.before) is None, cells[:headings])
    texts = [text for cell in cells[len(list(common)) :] for text in cell]
    words = (text for text in texts if number(text) is None and text.strip(" ").lower() not in _MISSING)
    return next(words, None)


def _why_text(word: str | None, changed: Sequence[_Cell]) -> str:
    if word is None or not any(number(cell.before) is not None and number(cell.after) is not None for cell in changed):
        return ""
    return f"; it is compared as text, because it contains {short(word)!r}"
