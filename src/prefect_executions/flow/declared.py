"""`Declared`: a Method's function and descriptor, for the modules that run, record and seal it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_executions.methods.model import Method


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The author's function and its descriptor.

    `method` lacks the identity of its code, which each run determines. `wrapped` are
    the secret inputs that the function takes as `SecretStr`.

    For a Method from a descriptor, `descriptor` is the file, and `function` only has the
    signature. Its scripts set the start of EXECUTING and enforce its time limit, so
    that the undeploy script has some time left.
    """

    function: Callable[..., Any]
    method: Method
    wrapped: frozenset[str]
    descriptor: Path | None = None
    withheld: bool = False
    """Whether the descriptor contains a secret in plain text, so that the record leaves out the file."""

    @property
    def source(self) -> Callable[..., Any] | Path:
        """The function or file whose code identity the record has."""
        return self.descriptor or self.function

    @property
    def is_scripted(self) -> bool:
        """Whether the Method consists of scripts, which run in phases."""
        return self.descriptor is not None
