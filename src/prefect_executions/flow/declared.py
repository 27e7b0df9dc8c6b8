"""A declared Method as the rest of the run needs it: its function and its descriptor, without Prefect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_executions.methods.model import Method


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The author's function and all that is declared of it.

    `method` is without its code, which is looked at when it runs; `wrapped` are
    the secret inputs that the function takes as `SecretStr`.

    Of a Method from a descriptor `descriptor` is the file, and `function` only says
    what may be asked. It is phased: its scripts say when EXECUTING begins, and keep
    its time limit, so that undeploy is left some time.
    """

    function: Callable[..., Any]
    method: Method
    wrapped: frozenset[str]
    descriptor: Path | None = None
    withheld: bool = False
    """Whether the descriptor holds a secret in clear, so that the file itself is not kept."""

    @property
    def source(self) -> Callable[..., Any] | Path:
        """What its code identity is that of."""
        return self.descriptor or self.function

    @property
    def is_scripted(self) -> bool:
        """Whether it is made of scripts, which go through phases."""
        return self.descriptor is not None
