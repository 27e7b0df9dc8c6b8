"""A declared Method as the rest of the run needs it: its function and its descriptor, without Prefect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect_executions.methods import Method


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The author's function and all that is declared of it.

    `method` is without its code, which is looked at when it runs; `wrapped` are
    the secret inputs that the function takes as `SecretStr`.
    """

    function: Callable[..., Any]
    method: Method
    wrapped: frozenset[str]
