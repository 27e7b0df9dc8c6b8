"""Compares two outputs of the same name: first by bytes, then as JSON, table, picture or lines of text.

Law: every difference is reported, and every part that is not judged is named; nothing is ignored silently.
Pictures are compared pixel by pixel with pillow, an optional dependency.
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

LOGS = frozenset({"outputs/stdout.log", "outputs/stderr.log"})
"""Logs contain times and generated names, so their differences are reported but not judged."""

_SHOWN = 5
"""Number of differences of one output that are listed individually."""
_SHORT = 60
_TABS = "text/tab-separated-values"
_CHANNELS = {"L": "B", "LA": "B", "RGB": "B", "RGBA": "B", "CMYK": "B", "I;16": "H", "I": "i", "F": "f"}
"""Pillow modes that are compared directly, with the array type of a channel; all other modes are converted to RGBA."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.,]\d+)?)?(Z|[+-]\d\d:?\d\d)?")


class _Result(NamedTuple):
    agreement: Agreement
    words: tuple[str, ...] = ()


_UNREADABLE = None
_Compare = Callable[[bytes, bytes, Comparison], _Result | None]


def compare_output(
    path: str,
    media_type: str,
    before: bytes,
    after: bytes,
    *,
    tolerance: float = 0,
    declared: Comparison | None = None,
) -> OutputVerdict:
    """Return how the output at *path* agrees with the recorded one, compared as its Method *declared*.

    *tolerance* is a relative difference of numbers; the larger of *tolerance* and the declared tolerance applies.
    A file whose content does not match its name is compared as text, and a file that is not text by bytes alone.
    """
    if before == after:
        return OutputVerdict(path=path, agreement=Agreement.SAME, by="bytes")
    comparison = (declared or Comparison()).at_least(tolerance)
    for by, compare in _comparers(path, media_type, comparison):
        result = compare(before, after, comparison)
        if result is not _UNREADABLE:
            return judged(path, result.agreement, result.words, by=by, declared=declared)
    return judged(path, Agreement.DIFFERS, (_byte_difference(before, after),), declared=declared)


def judged(
    path: str, agreement: Agreement, words: tuple[str, ...], *, by: str = "bytes", declared: Comparison | None = None
) -> OutputVerdict:
    """Return the verdict on an output; an output that differs in every run is reported but not judged."""
    if agreement is Agreement.DIFFERS:
        reason = "a log, which contains times and is not judged" if path in LOGS else None
        if declared is not None and declared.is_volatile:
            reason = "not judged, because the Method declares that it differs in every run"
        agreement, words = (Agreement.VOLATILE, (reason, *words)) if reason else (agreement, words)
    return OutputVerdict(path=path, agreement=agreement, by=by, words=words, declared=declared)


def _comparers(path: str, media_type: str, comparison: Comparison) -> Iterator[tuple[str, _Compare]]:
    by = comparison.by or _kind(path.lower(), media_type)
    if by == "JSON":
        yield by, _compare_json
    elif by == "table":
        yield by, _compare_tsv if media_type == _TABS or path.lower().endswith(".tsv") else _compare_csv
    elif by == "pixels":
        yield by, _compare_pixels
    if by != "bytes":
        yield "lines", _compare_lines


def _kind(name: str, media_type: str) -> str:
    if media_type.endswith("json") or name.endswith(".json"):
        return "JSON"
    if media_type in {"text/csv", _TABS} or name.endswith((".csv", ".tsv")):
        return "table"
    return "pixels" if media_type.startswith("image/") and "svg" not in media_type else "lines"


def _summary(differing: Sequence[str], volatile: Sequence[str], noun: str, comparison: Comparison) -> _Result:
    if differing:
        return _Result(Agreement.DIFFERS, (*_first_few(differing, noun), *_first_few(volatile, noun)))
    if volatile:
        return _Result(Agreement.VOLATILE, _first_few(volatile, noun))
    return _Result(Agreement.EQUAL, (f"written in another way{_within(comparison)}",))


# --- numbers and JSON ------------------------------------------------------------


def relative_difference(first: float, second: float) -> float:
    """Return the difference of two numbers relative to the larger one.

    Equal numbers and two NaN give 0; other pairs with NaN or infinity give infinity.
    """
    if first == second or (first != first and second != second):  # noqa: PLR0124 - NaN is not equal to itself
        return 0.0
    if not (isfinite(first) and isfinite(second)):
        return inf
    larger = max(abs(first), abs(second))
    return abs(first / larger - second / larger)


def _compare_json(before: bytes, after: bytes, comparison: Comparison) -> _Result | None:
    try:
        # Without a limit on the number of values: the document is in memory already.
        first, second = (strict_json(data, "output", bounded=False) for data in (before, after))
    except BundleError:
        return _UNREADABLE
    try:
        drift = list(_json_drift("", first, second, comparison))
    except RecursionError:
        return _UNREADABLE
    differing = [item.words for item in drift if not item.volatile]
    volatile = [f"{item.words} (volatile)" for item in drift if item.volatile]
    return _summary(differing, volatile, "member", comparison)


class _Drift(NamedTuple):
    words: str
    volatile: bool


def _json_drift(path: str, old: Any, new: Any, comparison: Comparison, *, volatile: bool = False) -> Iterator[_Drift]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            member, is_volatile = f"{path}/{name}", volatile or comparison.is_volatile_part(name)
            if name not in new:
                yield _Drift(f"{member} is gone", is_volatile)
            elif name not in old:
                yield _Drift(f"{member} is new", is_volatile)
            else:
                yield from _json_drift(member, old[name], new[name], comparison, volatile=is_volatile)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield _Drift(f"{path or '/'} had {len(old)} items and has {len(new)}", volatile)
            return
        for number, (first, second) in enumerate(zip(old, new, strict=True)):
            yield from _json_drift(f"{path}/{number}", first, second, comparison, volatile=volatile)
    elif not _equal_values(old, new, comparison):
        words = f"{path or '/'} was {_short(json.dumps(old))} and is {_short(json.dumps(new))}"
        only_times = isinstance(old, str) and isinstance(new, str) and _timeless(old) == _timeless(new)
        yield _Drift(words, volatile or only_times)


def _equal_values(old: Any, new: Any, comparison: Comparison) -> bool:
    if _is_number(old) and _is_number(new):
        return bool(old == new) or _near(old, new, comparison)
    return type(old) is type(new) and bool(old == new)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _near(first: float, second: float, comparison: Comparison) -> bool:
    try:
        first, second = float(first), float(second)
    except OverflowError:  # an integer beyond the range of floats
        return False
    near = relative_difference(first, second) <= comparison.tolerance
    return near or abs(first - second) <= comparison.absolute_tolerance


# --- tables ----------------------------------------------------------------------


def _compare_csv(before: bytes, after: bytes, comparison: Comparison) -> _Result | None:
    return _compare_tables(before, after, comparison, ",")


def _compare_tsv(before: bytes, after: bytes, comparison: Comparison) -> _Result | None:
    return _compare_tables(before, after, comparison, "\t")


def _compare_tables(before: bytes, after: bytes, comparison: Comparison, delimiter: str) -> _Result | None:
    try:
        tables = [
            list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter=delimiter)) for data in (before, after)
        ]
    except (UnicodeDecodeError, csv.Error):
        return _UNREADABLE
    first, second = tables
    head, rows, others = _split_header(first, second)
    shapes = tuple(_shape_drift(first, second, head, rows, others))
    if shapes:
        return _Result(Agreement.DIFFERS, shapes)
    differing: list[str] = []
    volatile: list[str] = []
    for number in range(max(map(len, rows), default=0)):
        name = head[number] if head and number < len(head) else str(number + 1)
        old, new = ([row[number : number + 1] for row in table] for table in (rows, others))
        words = _column_drift(name, old, new, comparison)
        if comparison.is_volatile_part(name):
            volatile += [f"{message} (volatile)" for message in words]
        else:
            differing += words
    return _summary(differing, volatile, "column", comparison)


def _split_header(
    first: list[list[str]], second: list[list[str]]
) -> tuple[list[str] | None, list[list[str]], list[list[str]]]:
    """Split off the header: a common first row that contains no number."""
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
    elif any(len(old) != len(new) for old, new in zip(rows, others, strict=True)):
        yield "the lengths of its rows differ"


def _column_drift(
    name: str, before: Sequence[list[str]], after: Sequence[list[str]], comparison: Comparison
) -> Iterator[str]:
    differing, largest, others = 0, 0.0, 0
    for old, new in zip(before, after, strict=True):
        if old == new:
            continue
        numbers = [number for cell in (*old, *new) if (number := _number(cell)) is not None]
        if len(numbers) != len(old) + len(new):
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


class PictureDrift(NamedTuple):
    """The number of differing pixels, of all pixels, and the largest difference in a channel, in channel units."""

    differing: int
    pixels: int
    largest: float


class SizesDiffer(NamedTuple):
    """Width and height of both pictures, in pixels."""

    before: tuple[int, int]
    after: tuple[int, int]


def picture_drift(before: bytes, after: bytes, near: Callable[[float, float], bool]) -> PictureDrift | SizesDiffer:
    """Return how two pictures differ; two channel values that are *near* count as equal.

    Raises:
        ImportError: If pillow is not installed.
        ValueError: If either file is not a picture, or is too large to open safely.
    """
    from PIL import Image  # noqa: PLC0415 - an extra of this package

    try:
        with Image.open(io.BytesIO(before)) as old, Image.open(io.BytesIO(after)) as new:
            if old.size != new.size:
                return SizesDiffer(old.size, new.size)
            mode = old.mode if old.mode == new.mode and old.mode in _CHANNELS else "RGBA"
            first, second = (array(_CHANNELS[mode], picture.convert(mode).tobytes()) for picture in (old, new))
            pixels = old.size[0] * old.size[1]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    if first == second:
        return PictureDrift(0, pixels, 0)
    channels = max(1, len(first) // pixels)
    far = {at: abs(a - b) for at, (a, b) in enumerate(zip(first, second, strict=True)) if a != b and not near(a, b)}
    return PictureDrift(len({at // channels for at in far}), pixels, max(far.values(), default=0))


def _compare_pixels(before: bytes, after: bytes, comparison: Comparison) -> _Result | None:
    try:
        drift = picture_drift(before, after, lambda first, second: _near(first, second, comparison))
    except ImportError:
        return _Result(Agreement.DIFFERS, ("the bytes differ; comparing pixels needs the package pillow",))
    except ValueError:
        return _UNREADABLE
    if isinstance(drift, SizesDiffer):
        return _Result(Agreement.DIFFERS, (f"it was {_size(drift.before)} pixels and is {_size(drift.after)}",))
    if not drift.differing:
        return _Result(Agreement.EQUAL, (f"the same pixels in another file{_within(comparison)}",))
    words = f"{drift.differing} of {drift.pixels} pixels differ, in a channel by up to {drift.largest:g}"
    return _Result(Agreement.DIFFERS, (words,))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


# --- text and bytes --------------------------------------------------------------


def _compare_lines(before: bytes, after: bytes, comparison: Comparison) -> _Result | None:  # noqa: ARG001 - a comparer's signature
    try:
        first, second = (data.decode().splitlines() for data in (before, after))
    except UnicodeDecodeError:
        return _UNREADABLE
    if first == second:
        return _Result(Agreement.EQUAL, ("the same lines with different line ends",))
    if len(first) != len(second):
        return _Result(Agreement.DIFFERS, (f"it had {len(first)} lines and has {len(second)}",))
    numbers = [number for number, (old, new) in enumerate(zip(first, second, strict=True)) if old != new]
    at = numbers[0]
    if all(_timeless(first[number]) == _timeless(second[number]) for number in numbers):
        return _Result(Agreement.VOLATILE, (f"only times differ, in {len(numbers)} of {len(first)} lines",))
    words = f"{len(numbers)} of {len(first)} lines differ, the first is line {at + 1}"
    return _Result(Agreement.DIFFERS, (f"{words}: it was {_short(first[at])!r} and is {_short(second[at])!r}",))


def _timeless(text: str) -> str:
    return _TIME.sub("<time>", text)


def _byte_difference(before: bytes, after: bytes) -> str:
    if len(before) != len(after):
        return f"it had {len(before)} bytes and has {len(after)}"
    return f"{sum(map(ne, before, after))} of {len(before)} bytes differ"


def _first_few(words: Sequence[str], noun: str) -> tuple[str, ...]:
    more = len(words) - _SHOWN
    return (*islice(words, _SHOWN), *([f"and {more} {noun}{'' if more == 1 else 's'} more"] if more > 0 else []))


def _within(comparison: Comparison) -> str:
    tolerances = [f"{part:g}" for part in (comparison.tolerance, comparison.absolute_tolerance) if part]
    return f", or within {' or '.join(tolerances)}" if tolerances else ""


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"
