"""Regular expressions of schemas, with a time limit: a hostile one takes exponential time, for example ``^(a+)+$``.

Python's `re` has no limit. `regex` has one and reads the same syntax.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter

from prefect_executions.errors import InputError

SECONDS = 2.0
"""The time limit for all regular expressions of one descriptor, or of one set of values."""

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
        InputError: If that takes too long.
    """
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


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")  # noqa: PLR2004 - half a line of a terminal
