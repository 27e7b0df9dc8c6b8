"""A run while it runs and after it: its status, its end, its logs; and the one interface of all runtimes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from prefect_executions.documents import Part, Time
from prefect_executions.executions.record import Process
from prefect_executions.runtimes.plans import Plan, RunRequest, Wish

GRACE = 3.0
"""Seconds that the processes of a run have to end by themselves after SIGTERM."""

StreamName = Literal["stdout", "stderr"]
STREAMS: tuple[StreamName, StreamName] = ("stdout", "stderr")


class RunStatus(StrEnum):
    """How a run stands."""

    WAITING = "waiting"
    """Made, and not begun."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """The time limit ended it."""
    LOST = "lost"
    """It runs no more, and nobody saw how it ended."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self not in {RunStatus.WAITING, RunStatus.RUNNING}


class Exit(Part):
    """How a run ended; what was not seen is absent.

    `code` is the script's own, or 128 and the number of the signal that ended it,
    as a shell tells it. `why` says what the code does not.
    """

    status: RunStatus
    code: int | None = None
    why: str | None = None
    started: Time | None = None
    ended: Time | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None


class Seen(Part):
    """Where a run really is or was, as the machine or the platform says it; nothing is taken from the request."""

    process: Process | None = None
    container: str | None = None
    pod: str | None = None
    node: str | None = None
    image: str | None = None
    """The image's own id: the digest of its configuration."""
    image_digest: str | None = None
    """``repository@sha256:…``, as a registry knows the image; absent when it came from none."""


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Some bytes of one stream, in their order; a line may be cut anywhere."""

    stream: StreamName
    data: bytes


class Run(Protocol):
    """One run of a script; any process that knows its id can have one."""

    @property
    def id(self) -> str:
        """The id that the caller gave it."""

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, and when nobody saw it."""

    def status(self) -> RunStatus:
        """Return how it stands now."""

    def seen(self) -> Seen:
        """Return where it really is or was."""

    def wait(self, timeout: float | None = None) -> Exit:
        """Return how it ended, as soon as it has.

        Raises:
            TimeoutError: If it still runs after *timeout* seconds.
            InfrastructureError: If the infrastructure is away.
        """

    def logs(self) -> Iterator[LogPiece]:
        """Yield what it has written and will write, from its beginning, until it is over and all was told."""

    def cancel(self, grace: float = GRACE) -> Exit:
        """End every process of it; return its end when none is left. One that is over stays as it ended."""

    def discard(self) -> None:
        """Forget it: end what is left of it, remove its logs and its state; again changes nothing."""


class Runtime(Protocol):
    """Runs scripts on one kind of infrastructure."""

    name: str
    honours: Mapping[Wish, str]
    """How it honours each wish; one that is not here is refused."""

    def sees(self, data: Path) -> str:
        """Return how a script sees the folder *data* of the machine that asks."""

    def compile(self, request: RunRequest, into: Path) -> Plan:
        """Return the plan, and write it into the folder *into*; with an image this takes as long as its pull.

        Raises:
            PlanError: If something that is asked for cannot be honoured; all of it is told at once.
            InfrastructureError: If the infrastructure is away.
        """

    def run(self, plan: Plan) -> Run:
        """Start what *plan* says, and return at once. An id is started once and never again.

        Raises:
            PlanError: If the id was used before, or the infrastructure refuses the plan.
            InfrastructureError: If the infrastructure is away.
        """

    def find(self, run_id: str) -> Run:
        """Return the run with this id, whoever started it.

        Raises:
            NotFoundError: If there is none.
        """

    def at_hand(self, image_id: str | None, digest: str | None) -> str | None:
        """Return a name of exactly the image with this id or *digest* (``repository@sha256:…``).

        It is pulled by its digest if it is not there; None when it is not to be had. A cluster pulls when it runs it.

        Raises:
            InfrastructureError: If the infrastructure is away.
        """

    def close(self) -> None:
        """Close the connections, if there are any; runs go on."""
