"""What is shown of an execution that is watched, and how it changes with what is heard.

Law: an execution that has ended has ended; a word that comes late or twice
changes nothing. Values in, values out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from prefect_executions.events import EventName, ExecutionEvent
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.lifecycle.status import FOLLOWS, Status

if TYPE_CHECKING:
    from prefect_executions.ledger.rows import Row


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One execution as a watcher sees it; `status` is None before anything was heard of it."""

    id: str
    method: str = ""
    status: Status | None = None
    progress: float | None = None
    message: str | None = None
    begun: datetime | None = None
    ended: datetime | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status is not None and self.status.terminal

    def elapsed(self, now: datetime) -> timedelta | None:
        """Return how long it ran, or runs."""
        return None if self.begun is None else max((self.ended or now) - self.begun, timedelta(0))


def from_record(record: ExecutionRecord) -> Watched:
    """Return what the record of an execution, open or sealed, tells a watcher."""
    told = record.job_status
    return Watched(
        id=record.id,
        method=record.method.id,
        status=record.status,
        progress=told.progress,
        message=told.message,
        begun=record.started,
        ended=record.finished,
    )


def from_row(row: Row) -> Watched:
    """Return what the ledger tells a watcher of an execution."""
    return Watched(
        id=row.id,
        method=row.method_id,
        status=row.status,
        progress=row.progress,
        message=row.message,
        begun=row.started,
        ended=row.finished,
    )


def newer(before: Watched, found: Watched) -> Watched:
    """Return whichever of the two knows more: what was heard may be ahead of what was read."""
    return found if _may_follow(before.status, found.status) else before


def apply_event(before: Watched, heard: ExecutionEvent) -> Watched:
    """Return the execution as it is after *heard*."""
    began = heard.time if heard.status is Status.STARTED else None  # it may be heard late
    known = replace(before, method=before.method or heard.method_id, begun=before.begun or began)
    if heard.name is EventName.ARCHIVE_FAILED:
        return replace(known, message=f"not archived: {heard.message}")
    if known.over:
        return known
    if heard.name is EventName.PROGRESS:
        message = heard.message or known.message
        return replace(known, status=known.status or Status.EXECUTING, progress=heard.progress, message=message)
    if heard.status is None or not _may_follow(known.status, heard.status):
        return known
    if heard.status.terminal:
        whole = heard.status is Status.COMPLETED and known.progress is not None
        progress = 100.0 if whole else known.progress
        return replace(known, status=heard.status, ended=heard.time, message=heard.message, progress=progress)
    return replace(known, status=heard.status)


def _may_follow(before: Status | None, status: Status | None) -> bool:
    return before is None or status in FOLLOWS[before]
