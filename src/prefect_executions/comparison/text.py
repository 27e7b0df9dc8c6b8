"""Compares two outputs as lines of text.

Law: only the ends of lines, a byte order mark and the encoding that it names may differ.
A line ends with LF or CRLF; a form feed or another separator is a part of the line.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_LE, getincrementaldecoder
from collections.abc import Iterator
from io import BytesIO
from itertools import zip_longest

from prefect_executions.comparison.results import Incomparable, Result, Runs, short
from prefect_executions.comparison.verdict import Agreement

_CONTROL = re.compile(b"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]")
"""Characters that text does not contain; a form feed and the escape of a colour are text."""
_BLOCK = 1 << 20


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
    first, second = (_with_plain_line_ends(data) for data in (before, after))
    if first == second:
        if not is_text:
            raise Incomparable("only line ends differ, and its media type is not that of text")
        return Result(Agreement.EQUAL, ("the same lines with different line ends or another byte order mark",))
    counts = _count(first), _count(second)
    if first.count(b"\n") != second.count(b"\n"):
        words = f"it had {counts[0]} lines and has {counts[1]}"
        return Result(
            Agreement.DIFFERS, (words if counts[0] != counts[1] else "only one of them ends with a line end",)
        )
    number = sum(1 for _ in _differing(first, second))
    if all(runs.only_times_differ(old, new) for _, old, new in _differing(first, second)):
        return Result(Agreement.VOLATILE, (f"only times differ, in {number} of {counts[0]} lines",))
    at, old, new = next(_differing(first, second))
    words = f"{number} of {counts[0]} lines differ, the first is line {at}"
    return Result(Agreement.DIFFERS, (f"{words}: it was {short(old)!r} and is {short(new)!r}",))


def _with_plain_line_ends(data: bytes) -> bytes:
    """Return a text in UTF-8 whose lines end with LF; text that is not ASCII would take up to four times the memory.

    Raises:
        Incomparable: If *data* is not text.
    """
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) and not data.startswith(BOM_UTF32_LE):
        text = decoded(data)
        if text is None:
            raise Incomparable("it is not text")
        data = text.encode()
    else:
        data = data.removeprefix(BOM_UTF8)
        check = getincrementaldecoder("utf-8")()
        try:
            for begin in range(0, len(data), _BLOCK):
                check.decode(data[begin : begin + _BLOCK])
            check.decode(b"", final=True)
        except UnicodeDecodeError:
            raise Incomparable("it is not text") from None
    if _CONTROL.search(data):
        raise Incomparable("it is not text")
    return data.replace(b"\r\n", b"\n")


def _differing(first: bytes, second: bytes) -> Iterator[tuple[int, str, str]]:
    """Yield each line that differs, with its number from 1."""
    lines = zip_longest(BytesIO(first), BytesIO(second), fillvalue=b"")
    for number, (old, new) in enumerate(lines, start=1):
        if old != new:
            yield number, old.removesuffix(b"\n").decode(), new.removesuffix(b"\n").decode()


def _count(text: bytes) -> int:
    """Count the lines; after the last line end there may be a partial line."""
    return text.count(b"\n") + (not text.endswith(b"\n") and bool(text))
