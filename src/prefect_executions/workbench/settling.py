"""Finish what is left to do on a workbench: seal what has ended, archive and index what is sealed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from prefect_executions.errors import ExecutionsError
from prefect_executions.lifecycle.status import Status
from prefect_executions.workbench.workbench import Outcome, Workbench

STALE = timedelta(days=1)
"""An upload that was begun so long ago is not going on any more: one is tried for minutes."""


class Settled(NamedTuple):
    """What became of one execution; `message` says why. One that is to be reported needs somebody to look at it."""

    id: str
    result: Literal["archived", "pending", "open", "report", "failed"]
    message: str | None = None
    status: Status | None = None

    @classmethod
    def of(cls, execution_id: str, outcome: Outcome) -> Settled:
        """Return what a sealing came to."""
        told = outcome.job_status
        return cls(execution_id, "archived" if outcome.archived else "pending", told.message, told.execution_status)


def settle_all(workbench: Workbench) -> Iterator[Settled]:
    """Try once to finish each unfinished execution of *workbench*; one that fails hinders no other.

    An execution that has not ended is told as ``open`` and left alone.
    """
    for execution_id in list(workbench.unfinished()):
        try:
            outcome = workbench.settle(execution_id)
        except ExecutionsError as error:
            yield Settled(execution_id, "failed", str(error))
            continue
        if outcome is None:
            yield Settled(execution_id, "open")
        else:
            yield Settled.of(execution_id, outcome)


def sweep_uploads(workbench: Workbench, now: datetime) -> int:
    """Remove what uploads that died long ago left in the archive's store; return how many there were.

    Raises:
        ArchiveError: If the store fails.
    """
    return workbench.archive.store.abort_stale(now - STALE)
