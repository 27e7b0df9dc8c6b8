"""The state of a watched execution, and how events change it.

Law: a terminal status never changes; a late or repeated event changes nothing.
Values in, values out.
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
    """The state of one watched execution; `status` is None before its first event."""

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
        """Return how long it ran, or has been running."""
        return None if self.begun is None else max((self.ended or now) - self.begun, timedelta(0))


def from_record(record: ExecutionRecord) -> Watched:
    """Return the watched state in the record of an open or sealed execution."""
    return Watched(
        id=record.id,
        method=record.method.id,
        status=record.status,
        progress=record.job_status.progress,
        message=record.job_status.message,
        begun=record.started,
        ended=record.finished,
    )


def from_row(row: Row) -> Watched:
    """Return the watched state in a row of the ledger."""
    return Watched(
        id=row.id,
        method=row.method_id,
        status=row.status,
        progress=row.progress,
        message=row.message,
        begun=row.started,
        ended=row.finished,
    )


def newer(watched: Watched, read: Watched) -> Watched:
    """Return the state that is further ahead: events in *watched* may be newer than the stored state in *read*."""
    return read if _may_follow(watched.status, read.status) else watched


def apply_event(watched: Watched, event: ExecutionEvent) -> Watched:
    """Return *watched* after *event*."""
    begun = event.time if event.status is Status.STARTED else None  # events may arrive out of order
    watched = replace(watched, method=watched.method or event.method_id, begun=watched.begun or begun)
    if event.name is EventName.ARCHIVE_FAILED:
        return replace(watched, message=f"not archived: {event.message}")
    if watched.over:
        return watched
    if event.name is EventName.PROGRESS:
        message = event.message or watched.message
        return replace(watched, status=watched.status or Status.EXECUTING, progress=event.progress, message=message)
    if event.status is None or not _may_follow(watched.status, event.status):
        return watched
    if event.status.terminal:
        complete = event.status is Status.COMPLETED and watched.progress is not None
        progress = 100.0 if complete else watched.progress
        return replace(watched, status=event.status, ended=event.time, message=event.message, progress=progress)
    return replace(watched, status=event.status)


def _may_follow(before: Status | None, status: Status | None) -> bool:
    return before is None or status in FOLLOWS[before]
