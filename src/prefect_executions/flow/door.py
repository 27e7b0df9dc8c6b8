"""The door that opened a run: one that runs a single Method in this process and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

from prefect_executions.flow.current import current_id


class Door(NamedTuple):
    """What such a door wants to know: the execution's id, as soon as its record is open."""

    begun: Callable[[str], None]


door: ContextVar[Door | None] = ContextVar("door", default=None)


def knock(execution_id: str) -> None:
    """Tell the door, if there is one, that the record of the execution it asked for is open."""
    waiting = door.get()
    if waiting is not None and current_id() is None:  # a Method that another calls was not asked for
        waiting.begun(execution_id)
