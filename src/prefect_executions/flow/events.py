"""The first status changes of a run, told half a second after the author's code began, if it still runs then.

A run that ends sooner tells all at its end, in one request; so a short run pays
for one. Ids follow from execution and status, so an event told twice is one event.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime

from prefect_executions import engine, events
from prefect_executions.lifecycle import JobStatus

_SOON = 0.5

_waiting: dict[str, threading.Timer] = {}


def tell_soon(job_status: JobStatus) -> None:
    """Tell the status changes so far in half a second, unless the execution ends before; a later call replaces it."""
    leave_to_end(job_status.job_id)
    context = copy_context()  # a new thread has none of Prefect's settings
    timer = threading.Timer(_SOON, lambda: context.run(_tell, job_status))
    timer.daemon = True
    _waiting[job_status.job_id] = timer
    timer.start()


def leave_to_end(execution_id: str) -> None:
    """Tell nothing more beforehand: the execution ends, and its sealing tells all."""
    timer = _waiting.pop(execution_id, None)
    if timer is not None:
        timer.cancel()


def _tell(job_status: JobStatus) -> None:
    with suppress(Exception):  # a thread of ours must not speak up in the author's terminal; the end tells again
        engine.tell(events.changes(job_status, datetime.now(UTC)))
