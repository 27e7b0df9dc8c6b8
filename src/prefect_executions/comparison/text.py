"""Compares two outputs as lines of text.

Law: only the ends of lines, a byte order mark and the encoding that it names may differ.
A line ends with LF or CRLF; a form feed or another separator is a part of the line.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_LE

from prefect_executions.comparison.results import Incomparable, Result, Runs, short
from prefect_executions.comparison.verdict import Agreement

_CONTROL = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]")
"""Characters that text does not contain; a form feed and the escape of a colour are text."""
_LINE_END = re.compile("\r?\n")


def decoded(data: bytes) -> str | None:
    """Return *data* as text without its byte order mark; None if it is neither UTF-8 nor marked as UTF-16."""
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) and not data.startswith(BOM_UTF32_LE):
        encoding = "utf-16"
    else:
        encoding = "utf-8"
        data = data.removeprefix(BOM_UTF8)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def compare_lines(before: bytes, after: bytes, runs: Runs, *, is_text: bool) -> Result:
    """Compare two texts; set *is_text* if only text has this media type, so that line ends do not count.

    Raises:
        Incomparable: If either is not text, or nothing but line ends differs in what may not be text.
    """
    texts = [decoded(data) for data in (before, after)]
    if any(text is None or _CONTROL.search(text) for text in texts):
        raise Incomparable("it is not text")
    first, second = (_LINE_END.split(text) for text in texts if text is not None)
    if first == second:
        if not is_text:
            raise Incomparable("only line ends differ, and its media type is not that of text")
        return Result(Agreement.EQUAL, ("the same lines with different line ends or another byte order mark",))
    if len(first) != len(second):
        counts = _count(first), _count(second)
        words = f"it had {counts[0]} lines and has {counts[1]}"
        return Result(
            Agreement.DIFFERS, (words if counts[0] != counts[1] else "only one of them ends with a line end",)
        )
    numbers = [number for number, (old, new) in enumerate(zip(first, second, strict=True)) if old != new]
    if all(runs.only_times_differ(first[number], second[number]) for number in numbers):
        return Result(Agreement.VOLATILE, (f"only times differ, in {len(numbers)} of {_count(first)} lines",))
    at = numbers[0]
    words = f"{len(numbers)} of {_count(first)} lines differ, the first is line {at + 1}"
    return Result(Agreement.DIFFERS, (f"{words}: it was {short(first[at])!r} and is {short(second[at])!r}",))


def _count(lines: list[str]) -> int:
    """Count the lines; after the last line end there may be a partial line."""
    return len(lines) - (not lines[-1])
