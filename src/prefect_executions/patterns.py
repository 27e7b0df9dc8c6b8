"""Regular expressions of schemas, with limits: a hostile one takes exponential time, for example ``^(a+)+$``.

Python's `re` has no time limit. `regex` has one and reads the same syntax, but writes each
repetition out by its least count, so that ``a{2000000000}`` would take all memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from time import perf_counter

from prefect_executions.errors import InputError

SECONDS = 2.0
"""The time limit for all regular expressions of one descriptor, or of one set of values."""

MAX_ITEMS = 100_000
"""The most items of a regular expression with its repetitions written out; each takes 300 bytes of memory."""

_TOKEN = re.compile(
    r"(?P<unusual>\(\?(?:\#|[a-zA-Z-]*x))|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?P<least>[0-9]+)(?:,[0-9]*)?\}|.", re.DOTALL
)
"""A part of a regular expression; `unusual` is a comment or the start of comments, which JSON Schema does not have."""

_left: ContextVar[list[float] | None] = ContextVar("_left", default=None)


@contextmanager
def limited_time(seconds: float = SECONDS) -> Iterator[None]:
    """Limit the regular expressions in the block to *seconds* together, unless an outer block limits them."""
    if _left.get() is not None:
        yield
        return
    token = _left.set([seconds])
    try:
        yield
    finally:
        _left.reset(token)


def matches(pattern: str, text: str) -> bool:
    """Return whether *pattern* matches somewhere in *text*.

    Raises:
        InputError: If that takes too long, or *pattern* is too large.
    """
    if _items(pattern) > MAX_ITEMS:
        raise InputError(
            f"the regular expression {_short(pattern)} has a comment, or more than {MAX_ITEMS} items with its "
            "repetitions written out; simplify it"
        )
    import regex  # noqa: PLC0415 - takes 20 ms, and few schemas have a regular expression

    left = _left.get() or [SECONDS]
    start = perf_counter()
    try:
        return regex.search(pattern, text, timeout=max(left[0], 0.001)) is not None
    except TimeoutError:
        raise InputError(
            f"the regular expression {_short(pattern)} takes more than {SECONDS:g} s for {_short(text)}; "
            "simplify it: repeat nothing that is a repetition itself"
        ) from None
    except (regex.error, RecursionError) as error:
        raise InputError(f"the regular expression {_short(pattern)} is not supported: {error}") from error
    finally:
        left[0] -= perf_counter() - start


def _items(pattern: str) -> float:
    """Return an upper bound for the items of *pattern* with its repetitions written out; infinity for a comment."""
    sums, last = [0.0], 0.0
    for token in _TOKEN.finditer(pattern):
        text, least = token[0], token["least"]
        if token["unusual"]:
            return inf
        if text == "(":
            sums.append(0.0)
            last = 0.0
        elif least is not None:
            times = max(1.0, float(least))
            sums[-1] += last * (times - 1)
            last *= times
        else:
            last = 1 + (sums.pop() if text == ")" and len(sums) > 1 else 0.0)
            sums[-1] += last
    return sum(sums)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")  # noqa: PLR2004 - half a line of a terminal
