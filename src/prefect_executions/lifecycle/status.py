"""The statuses of an execution: allowed transitions, mappings from Prefect and to OGC, and the phases of scripts.

Law: these tables are the only ones.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class Status(StrEnum):
    """The seven statuses of an execution."""

    CREATED = "CREATED"
    SCHEDULED = "SCHEDULED"
    STARTED = "STARTED"
    EXECUTING = "EXECUTING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """Whether no other status may follow."""
        return not FOLLOWS[self]


class Reason(StrEnum):
    """Why an execution failed."""

    ERROR = "error"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    INFRASTRUCTURE = "infrastructure"
    LOST = "lost"


class Observer(StrEnum):
    """The source of an entry in the history."""

    HOOK = "hook"
    """This package's code in the run: its wrapper or its state hooks."""
    PREFECT = "prefect"
    """Prefect's state history."""
    SETTLE = "settle"
    """`executions settle`, after the fact; or the parent of the process that died."""
    IMPORT = "import"
    """`executions import`, from another system's record."""


OgcStatus = Literal["accepted", "running", "successful", "failed", "dismissed"]

_ENDS = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})

FOLLOWS: dict[Status, frozenset[Status]] = {
    Status.CREATED: frozenset({Status.SCHEDULED, Status.STARTED, Status.EXECUTING}) | _ENDS,
    Status.SCHEDULED: frozenset({Status.STARTED, Status.EXECUTING}) | _ENDS,
    Status.STARTED: frozenset({Status.EXECUTING}) | _ENDS,
    Status.EXECUTING: _ENDS,
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}

# OGC API Processes 1.0, schema statusCode.
AS_OGC: dict[Status, OgcStatus] = {
    Status.CREATED: "accepted",
    Status.SCHEDULED: "accepted",
    Status.STARTED: "running",
    Status.EXECUTING: "running",
    Status.COMPLETED: "successful",
    Status.FAILED: "failed",
    Status.CANCELLED: "dismissed",
}

# Prefect's state types. PAUSED and CANCELLING occur while the Method's code runs;
# they become entries in the history and change no status.
FROM_PREFECT: dict[str, Status | None] = {
    "SCHEDULED": Status.CREATED,
    "PENDING": Status.SCHEDULED,
    "RUNNING": Status.STARTED,
    "PAUSED": None,
    "CANCELLING": None,
    "COMPLETED": Status.COMPLETED,
    "FAILED": Status.FAILED,
    "CRASHED": Status.FAILED,
    "CANCELLED": Status.CANCELLED,
}

PREFECT_TERMINAL = frozenset(name for name, status in FROM_PREFECT.items() if status is not None and status.terminal)
"""Prefect's terminal state types."""

# The prefixes of a worker's message if it could not create the infrastructure of a run.
_NOT_SUBMITTED = (
    "Failed to submit flow run",
    "Flow run could not be submitted to infrastructure",
    "Flow run could not start",
)


def terminal_status_of(
    state_type: str, state_name: str, message: str | None, *, started: bool
) -> tuple[Status, Reason | None] | None:
    """Return the terminal status and reason for a Prefect state; None if the state is not terminal.

    CANCELLING counts as CANCELLED: Prefect calls the cancellation hooks with CANCELLING
    before it commits CANCELLED, and no other state can follow. *started* says whether
    the run ever reached RUNNING.
    """
    if state_type in {"CANCELLING", "CANCELLED"}:
        return Status.CANCELLED, None
    status = FROM_PREFECT.get(state_type)
    if status is None or not status.terminal:
        return None
    if status is not Status.FAILED:
        return status, None
    if state_type == "FAILED":
        return status, Reason.TIMED_OUT if state_name == "TimedOut" else Reason.ERROR
    submitted = started or not (message or "").startswith(_NOT_SUBMITTED)
    return status, Reason.CRASHED if submitted else Reason.INFRASTRUCTURE


class Phase(StrEnum):
    """The phases of a descriptor Method, in order. Deploy, Execute and Undeploy have a script."""

    LAUNCH = "launch"
    """Prepare the plan, the image, and the process or container."""
    DEPLOY = "deploy"
    EXECUTE = "execute"
    FETCH = "fetch"
    """Turn the files in the data folder into outputs."""
    UNDEPLOY = "undeploy"
    DESTROY = "destroy"
    """Remove the process or container."""
