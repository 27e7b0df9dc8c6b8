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
