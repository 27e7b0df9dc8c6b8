"""Marks for tests of many cases: which cases run only with EXECUTIONS_TEST_LONG=1."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def long_if(cases: Iterable[str], slow: Collection[str]) -> list[Any]:
    """Return *cases* for `parametrize`, those in *slow* marked `long`."""
    named = list(cases)
    unknown = set(slow) - set(named)
    assert not unknown, f"no such cases: {', '.join(sorted(unknown))}"
    return [pytest.param(name, marks=pytest.mark.long) if name in slow else name for name in named]


def long_unless(cases: Iterable[tuple[Any, ...]], quick: Collection[tuple[Any, ...]]) -> list[Any]:
    """Return *cases* of several values for `parametrize`, all but those in *quick* marked `long`."""
    listed = list(cases)
    unknown = [case for case in quick if case not in listed]
    assert not unknown, f"no such cases: {unknown}"
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.long) for case in listed]


def long_after(count: int, cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return *cases* of several values for `parametrize`, all after the first *count* marked `long`."""
    listed = list(cases)
    return [*listed[:count], *(pytest.param(*case, marks=pytest.mark.long) for case in listed[count:])]
