"""The statuses of an execution, what may follow what, and how Prefect and OGC say it.

Law: these tables are the only ones.

The phases that the scripts of a descriptor Method go through.
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
        """Whether nothing may follow."""
        return not FOLLOWS[self]


class Reason(StrEnum):
    """Why an execution failed."""

    ERROR = "error"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    INFRASTRUCTURE = "infrastructure"
    LOST = "lost"


class Observer(StrEnum):
    """Who saw an entry of the history happen."""

    HOOK = "hook"
    """Our own code in the run: its wrapper or its state hooks."""
    PREFECT = "prefect"
    """Prefect's state history."""
    SETTLE = "settle"
    """`executions settle`, after the fact."""
    IMPORT = "import"
    """`executions import`, of what another system recorded."""


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

# Prefect's state types. PAUSED and CANCELLING come while the Method's code is
# under way and are told by entries; they move no status.
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

# How Prefect's workers begin the message of a run whose infrastructure could not be made.
_NOT_SUBMITTED = (
    "Failed to submit flow run",
    "Flow run could not be submitted to infrastructure",
    "Flow run could not start",
)

# Clocks of a server and a worker differ; more than this is told as a fault.


def terminal_status_of(
    state_type: str, state_name: str, message: str | None, *, started: bool
) -> tuple[Status, Reason | None] | None:
    """Return the terminal status and reason that a Prefect state means, or None when it ends nothing.

    CANCELLING counts as CANCELLED: Prefect calls the cancellation hooks with it,
    before it commits CANCELLED, and nothing leads back. *started* says whether
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
    """The phases of a descriptor Method, in their order; those that have a script are Deploy, Execute and Undeploy."""

    LAUNCH = "launch"
    """What runs the scripts is made ready: the plan, the image, the process or container."""
    DEPLOY = "deploy"
    EXECUTE = "execute"
    FETCH = "fetch"
    """What was left in the data folder becomes the outputs."""
    UNDEPLOY = "undeploy"
    DESTROY = "destroy"
    """What ran the scripts is removed."""
