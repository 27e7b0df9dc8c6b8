"""Status changes as Prefect events, told a moment later so that a short run does not wait for the server to take them.

A long run tells within half a second what automations may react to; a run that
ends sooner tells all at its end. Ids follow from execution and status, so an
event that is told twice is one event.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from contextvars import copy_context

from prefect_executions import engine
from prefect_executions.lifecycle import Happening, JobStatus, StatusEntry

_SOON = 0.5

_waiting: dict[str, threading.Timer] = {}
_told: dict[str, set[StatusEntry]] = {}


def tell_soon(job_status: JobStatus) -> None:
    """Tell the status changes so far in half a second, unless the execution ends before."""
    context = copy_context()  # a new thread has none of Prefect's settings
    timer = threading.Timer(_SOON, lambda: context.run(_tell, job_status))
    timer.daemon = True
    _waiting[job_status.job_id] = timer
    timer.start()


def tell_end(job_status: JobStatus, *, again: bool) -> None:
    """Tell the status changes that were not told yet; with *again* all, because who told them was killed."""
    timer = _waiting.pop(job_status.job_id, None)
    if timer is not None:
        timer.cancel()
    told = _told.pop(job_status.job_id, set())
    for entry in _changes(job_status):
        if again or entry not in told:
            engine.tell(job_status, entry)


def _tell(job_status: JobStatus) -> None:
    with suppress(Exception):  # a thread of ours must not speak up in the author's terminal; the end tells again
        for entry in _changes(job_status):
            engine.tell(job_status, entry)
        _told[job_status.job_id] = set(_changes(job_status))


def _changes(job_status: JobStatus) -> list[StatusEntry]:
    return [entry for entry in job_status.history if entry.kind is Happening.STATUS]
