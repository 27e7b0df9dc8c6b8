"""How two outputs of one name agree: by bytes, then by what their kind of content means, drift told in words.

Law: what differs is told, and what is not judged is named; nothing is ignored silently.

How two pictures differ, pixel by pixel; read with the package pillow, which is an extra.
"""

from __future__ import annotations

import csv
import io
import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import inf, isfinite
from operator import ne
from typing import Any, NamedTuple

from prefect_executions.comparison.verdict import Agreement, OutputVerdict
from prefect_executions.documents import strict_json
from prefect_executions.errors import BundleError
from prefect_executions.methods.model import Comparison

_CHANNELS = {"L": "B", "LA": "B", "RGB": "B", "RGBA": "B", "CMYK": "B", "I;16": "H", "I": "i", "F": "f"}
"""Modes of pillow that are compared as they are, with the type of a channel; all others are made RGBA first."""


class PictureDrift(NamedTuple):
    """How many pixels differ of how many, and the largest difference in a channel, in its own steps."""

    differing: int
    pixels: int
    largest: float


class SizesDiffer(NamedTuple):
    """Width and height of each of the two pictures, in pixels."""

    before: tuple[int, int]
    after: tuple[int, int]


def picture_drift(before: bytes, after: bytes, near: Callable[[float, float], bool]) -> PictureDrift | SizesDiffer:
    """Return how two pictures differ; two values of a channel that are *near* are the same.

    Raises:
        ImportError: If pillow is not installed.
        ValueError: If one of them is no picture, or one that is too large to be opened safely.
    """
    from PIL import Image  # noqa: PLC0415 - an extra of this package

    try:
        with Image.open(io.BytesIO(before)) as one, Image.open(io.BytesIO(after)) as other:
            if one.size != other.size:
                return SizesDiffer(one.size, other.size)
            mode = one.mode if one.mode == other.mode and one.mode in _CHANNELS else "RGBA"
            first, second = (array(_CHANNELS[mode], picture.convert(mode).tobytes()) for picture in (one, other))
            pixels = one.size[0] * one.size[1]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    if first == second:
        return PictureDrift(0, pixels, 0)
    channels = max(1, len(first) // pixels)
    far = {at: abs(a - b) for at, (a, b) in enumerate(zip(first, second, strict=True)) if a != b and not near(a, b)}
    return PictureDrift(len({at // channels for at in far}), pixels, max(far.values(), default=0))


LOGS = frozenset({"outputs/stdout.log", "outputs/stderr.log"})
"""What a run says of itself, with times and names of its own: told, and not judged."""

_SHOWN = 5
"""Differences of one output that are told one by one."""
_SHORT = 60
_TABS = "text/tab-separated-values"
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.,]\d+)?)?(Z|[+-]\d\d:?\d\d)?")


class _Found(NamedTuple):
    agreement: Agreement
    words: tuple[str, ...] = ()


_NOT_OF_THE_KIND = None
_Compare = Callable[[bytes, bytes, Comparison], _Found | None]


def compare_output(
    path: str,
    media_type: str,
    before: bytes,
    after: bytes,
    *,
    tolerance: float = 0,
    declared: Comparison | None = None,
) -> OutputVerdict:
    """Return how the output at *path* agrees with the recorded one, compared as its Method has *declared*.

    *tolerance* is a relative difference of numbers; the larger of it and the declared one counts. What is not
    what its name says is compared as text, and what is no text by its bytes alone.
    """
    if before == after:
        return OutputVerdict(path=path, agreement=Agreement.SAME, by="bytes")
    comparison = (declared or Comparison()).at_least(tolerance)
    for by, compare in _ways(path, media_type, comparison):
        found = compare(before, after, comparison)
        if found is not _NOT_OF_THE_KIND:
            return judged(path, found.agreement, found.words, by=by, declared=declared)
    return judged(path, Agreement.DIFFERS, (_of_bytes(before, after),), declared=declared)


def judged(
    path: str, agreement: Agreement, words: tuple[str, ...], *, by: str = "bytes", declared: Comparison | None = None
) -> OutputVerdict:
    """Return the verdict on an output: one that differs in every run is told and not judged."""
    if agreement is Agreement.DIFFERS:
        why = "a log, which tells times and is not judged" if path in LOGS else None
        if declared is not None and declared.is_volatile:
            why = "not judged, because the Method declares that it differs in every run"
        agreement, words = (Agreement.VOLATILE, (why, *words)) if why else (agreement, words)
    return OutputVerdict(path=path, agreement=agreement, by=by, words=words, declared=declared)


def _ways(path: str, media_type: str, comparison: Comparison) -> Iterator[tuple[str, _Compare]]:
    by = comparison.by or _kind(path.lower(), media_type)
    if by == "JSON":
        yield by, _json
    elif by == "table":
        yield by, _tabs if media_type == _TABS or path.lower().endswith(".tsv") else _commas
    elif by == "pixels":
        yield by, _pixels
    if by != "bytes":
        yield "lines", _lines


def _kind(name: str, media_type: str) -> str:
    if media_type.endswith("json") or name.endswith(".json"):
        return "JSON"
    if media_type in {"text/csv", _TABS} or name.endswith((".csv", ".tsv")):
        return "table"
    return "pixels" if media_type.startswith("image/") and "svg" not in media_type else "lines"


def _summed_up(differing: Sequence[str], volatile: Sequence[str], noun: str, comparison: Comparison) -> _Found:
    if differing:
        return _Found(Agreement.DIFFERS, (*_few(differing, noun), *_few(volatile, noun)))
    if volatile:
        return _Found(Agreement.VOLATILE, _few(volatile, noun))
    return _Found(Agreement.EQUAL, (f"written in another way{_within(comparison)}",))


# --- numbers and JSON ------------------------------------------------------------


def relative_difference(one: float, other: float) -> float:
    """Return by which part of the larger two numbers differ; of what is no number and no infinity, 0 or infinity."""
    if one == other or (one != one and other != other):  # noqa: PLR0124 - NaN is not itself
        return 0.0
    if not (isfinite(one) and isfinite(other)):
        return inf
    larger = max(abs(one), abs(other))
    return abs(one / larger - other / larger)


def _json(before: bytes, after: bytes, comparison: Comparison) -> _Found | None:
    try:
        # However many values it has: a run wrote it, and it is in memory already.
        first, second = (strict_json(data, "output", bounded=False) for data in (before, after))
    except BundleError:
        return _NOT_OF_THE_KIND
    try:
        drift = list(_json_drift("", first, second, comparison))
    except RecursionError:
        return _NOT_OF_THE_KIND
    differing = [one.words for one in drift if not one.volatile]
    return _summed_up(differing, [f"{one.words} (volatile)" for one in drift if one.volatile], "member", comparison)


class _Drift(NamedTuple):
    words: str
    volatile: bool


def _json_drift(at: str, one: Any, other: Any, comparison: Comparison, *, volatile: bool = False) -> Iterator[_Drift]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            place, changes = f"{at}/{name}", volatile or comparison.is_volatile_part(name)
            if name not in other:
                yield _Drift(f"{place} is gone", changes)
            elif name not in one:
                yield _Drift(f"{place} is new", changes)
            else:
                yield from _json_drift(place, one[name], other[name], comparison, volatile=changes)
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            yield _Drift(f"{at or '/'} had {len(one)} items and has {len(other)}", volatile)
            return
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            yield from _json_drift(f"{at}/{number}", first, second, comparison, volatile=volatile)
    elif not _same_value(one, other, comparison):
        words = f"{at or '/'} was {_short(json.dumps(one))} and is {_short(json.dumps(other))}"
        timed = isinstance(one, str) and isinstance(other, str) and _timeless(one) == _timeless(other)
        yield _Drift(words, volatile or timed)


def _same_value(one: Any, other: Any, comparison: Comparison) -> bool:
    if _is_number(one) and _is_number(other):
        return bool(one == other) or _near(one, other, comparison)
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _near(one: float, other: float, comparison: Comparison) -> bool:
    try:
        one, other = float(one), float(other)
    except OverflowError:  # an integer beyond all floats
        return False
    near = relative_difference(one, other) <= comparison.tolerance
    return near or abs(one - other) <= comparison.absolute_tolerance


# --- tables ----------------------------------------------------------------------


def _commas(before: bytes, after: bytes, comparison: Comparison) -> _Found | None:
    return _table(before, after, comparison, ",")


def _tabs(before: bytes, after: bytes, comparison: Comparison) -> _Found | None:
    return _table(before, after, comparison, "\t")


def _table(before: bytes, after: bytes, comparison: Comparison, delimiter: str) -> _Found | None:
    try:
        tables = [
            list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter=delimiter)) for data in (before, after)
        ]
    except (UnicodeDecodeError, csv.Error):
        return _NOT_OF_THE_KIND
    first, second = tables
    head, rows, others = _without_head(first, second)
    shapes = tuple(_shape_drift(first, second, head, rows, others))
    if shapes:
        return _Found(Agreement.DIFFERS, shapes)
    differing: list[str] = []
    volatile: list[str] = []
    for number in range(max(map(len, rows), default=0)):
        name = head[number] if head and number < len(head) else str(number + 1)
        one, other = ([row[number : number + 1] for row in some] for some in (rows, others))
        words = _column_drift(name, one, other, comparison)
        if comparison.is_volatile_part(name):
            volatile += [f"{said} (volatile)" for said in words]
        else:
            differing += words
    return _summed_up(differing, volatile, "column", comparison)


def _without_head(
    first: list[list[str]], second: list[list[str]]
) -> tuple[list[str] | None, list[list[str]], list[list[str]]]:
    """A first row without a number, that both begin with, names the columns."""
    if first and second and first[0] == second[0] and not any(_number(cell) is not None for cell in first[0]):
        return first[0], first[1:], second[1:]
    return None, first, second


def _shape_drift(
    first: list[list[str]],
    second: list[list[str]],
    head: list[str] | None,
    rows: list[list[str]],
    others: list[list[str]],
) -> Iterator[str]:
    if head is None and first and second and len(first[0]) != len(second[0]):
        yield f"it had {len(first[0])} columns and has {len(second[0])}"
    elif len(rows) != len(others):
        yield f"it had {len(rows)} rows and has {len(others)}"
    elif any(len(one) != len(other) for one, other in zip(rows, others, strict=True)):
        yield "its rows are not as long as they were"


def _column_drift(
    name: str, before: Sequence[list[str]], after: Sequence[list[str]], comparison: Comparison
) -> Iterator[str]:
    differing, largest, others = 0, 0.0, 0
    for one, other in zip(before, after, strict=True):
        if one == other:
            continue
        numbers = [number for cell in (*one, *other) if (number := _number(cell)) is not None]
        if len(numbers) != len(one) + len(other):
            differing, others = differing + 1, others + 1
        elif not _near(numbers[0], numbers[1], comparison):
            differing, largest = differing + 1, max(largest, relative_difference(*numbers))
    if differing:
        words = f"column {_short(name)} differs in {differing} of {len(before)} rows"
        numeric = f", largest relative difference {largest:.2g}" if differing > others else ""
        yield f"{words}{numeric}"


def _number(cell: str) -> float | None:
    try:
        return float(cell) if cell.strip() and "_" not in cell else None
    except ValueError:
        return None


# --- pictures --------------------------------------------------------------------


def _pixels(before: bytes, after: bytes, comparison: Comparison) -> _Found | None:
    try:
        found = picture_drift(before, after, lambda one, other: _near(one, other, comparison))
    except ImportError:
        return _Found(Agreement.DIFFERS, ("other bytes; the pixels cannot be compared without the package pillow",))
    except ValueError:
        return _NOT_OF_THE_KIND
    if isinstance(found, SizesDiffer):
        return _Found(Agreement.DIFFERS, (f"it was {_size(found.before)} pixels and is {_size(found.after)}",))
    if not found.differing:
        return _Found(Agreement.EQUAL, (f"the same pixels in another file{_within(comparison)}",))
    words = f"{found.differing} of {found.pixels} pixels differ, in a channel by up to {found.largest:g}"
    return _Found(Agreement.DIFFERS, (words,))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


# --- text and bytes --------------------------------------------------------------


def _lines(before: bytes, after: bytes, comparison: Comparison) -> _Found | None:  # noqa: ARG001 - text has no numbers
    try:
        first, second = (data.decode().splitlines() for data in (before, after))
    except UnicodeDecodeError:
        return _NOT_OF_THE_KIND
    if first == second:
        return _Found(Agreement.EQUAL, ("the same lines with other line ends",))
    if len(first) != len(second):
        return _Found(Agreement.DIFFERS, (f"it had {len(first)} lines and has {len(second)}",))
    numbers = [number for number, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]
    at = numbers[0]
    if all(_timeless(first[number]) == _timeless(second[number]) for number in numbers):
        return _Found(Agreement.VOLATILE, (f"only times differ, in {len(numbers)} of {len(first)} lines",))
    words = f"{len(numbers)} of {len(first)} lines differ, the first is line {at + 1}"
    return _Found(Agreement.DIFFERS, (f"{words}: it was {_short(first[at])!r} and is {_short(second[at])!r}",))


def _timeless(text: str) -> str:
    return _TIME.sub("<time>", text)


def _of_bytes(before: bytes, after: bytes) -> str:
    if len(before) != len(after):
        return f"it had {len(before)} bytes and has {len(after)}"
    return f"{sum(map(ne, before, after))} of {len(before)} bytes differ"


def _few(words: Sequence[str], noun: str) -> tuple[str, ...]:
    more = len(words) - _SHOWN
    return (*islice(words, _SHOWN), *([f"and {more} {noun}{'' if more == 1 else 's'} more"] if more > 0 else []))


def _within(comparison: Comparison) -> str:
    told = [f"{part:g}" for part in (comparison.tolerance, comparison.absolute_tolerance) if part]
    return f", or within {' or '.join(told)}" if told else ""


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"
