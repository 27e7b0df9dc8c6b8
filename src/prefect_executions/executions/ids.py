"""Execution ids: the id of a flow run, and its generation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple, Self
from uuid import UUID

_LONGEST_GENERATION = 9
"""The most digits of a generation; more would be a hostile id."""
_HEX = re.compile(r"[0-9a-f]{1,32}")


class ExecutionId(NamedTuple):
    """The id of an execution: ``<flow run id>``, and ``<flow run id>.2`` from its second generation on.

    Prefect keeps the id of a flow run that is retried by hand after its end. Each
    such retry begins a new generation, which is an execution with its own record.
    """

    flow_run_id: str
    generation: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the id that *text* is; a suffix that is not a generation counts as the first generation."""
        flow_run_id, _, generation = text.partition(".")
        is_number = generation.isascii() and generation.isdigit() and len(generation) <= _LONGEST_GENERATION
        return cls(flow_run_id, int(generation) if is_number else 1)

    def __str__(self) -> str:
        return self.flow_run_id if self.generation == 1 else f"{self.flow_run_id}.{self.generation}"

    @property
    def flow_run_uuid(self) -> UUID:
        return UUID(self.flow_run_id)


def each_generation(flow_run_id: str) -> Iterator[str]:
    """Yield the execution ids that a flow run may have, from its first generation on, without end."""
    return (str(ExecutionId(flow_run_id, generation)) for generation in count(1))


def split_generation(prefix: str) -> tuple[str, str]:
    """Split the *prefix* of an id into that of the flow run's id, and a generation such as ``.2`` or nothing."""
    head, dot, generation = prefix.rpartition(".")
    return (head, dot + generation) if head and generation.isascii() and generation.isdigit() else (prefix, "")


def normalize_prefix(prefix: str) -> str:
    """Return the *prefix* of an id in lower case with a UUID's dashes; unchanged if it cannot begin a UUID."""
    head, dot, generation = prefix.lower().partition(".")
    digits = head.replace("-", "")
    if not _HEX.fullmatch(digits):
        return prefix
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "-".join(filter(None, parts)) + dot + generation
