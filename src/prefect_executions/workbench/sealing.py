"""How an execution ended, as far as the one who seals it knows, and the final status that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from prefect_executions.bundles.gather import Gathered
from prefect_executions.lifecycle.history import Happening, JobStatus, PrefectState, advance, remark
from prefect_executions.lifecycle.status import Observer, Reason, Status


class Ending(NamedTuple):
    """How an execution ended, as far as the one who seals it knows."""

    status: Status
    reason: Reason | None
    at: datetime
    observer: Observer
    prefect_state: PrefectState | None = None
    message: str | None = None


def ended(job_status: JobStatus, end: Ending, gathered: Gathered, notes: Sequence[str] = ()) -> JobStatus:
    """Return the final job status: what could not be kept and other *notes*, the end, the outputs.

    One that is terminal already keeps its end.
    """
    if not job_status.execution_status.terminal:
        for note in (*gathered.notes, *notes):
            job_status = remark(job_status, Happening.NOTE, end.at, observer=end.observer, message=note)
        interrupted = end.status is Status.CANCELLED or end.reason not in {None, Reason.ERROR}
        ran = job_status.execution_status in {Status.STARTED, Status.EXECUTING}
        job_status = advance(
            job_status,
            end.status,
            end.at,
            observer=end.observer,
            prefect_state=end.prefect_state,
            reason=end.reason,
            message=end.message,
        )
        job_status = job_status.model_copy(update={"partial": True if interrupted and ran else None})
    return job_status.model_copy(update={"outputs": gathered.outputs})


def lost_with(hostname: str | None, job_status: JobStatus, end: Ending) -> JobStatus:
    """Return the job status with the note that outputs and logs were lost with the Workbench on that machine."""
    told = f"outputs and logs were lost with the workbench on {hostname}"
    if hostname is None:  # its record was never opened
        told = "outputs and logs, if there were any, were lost with the workbench on a machine that nobody told"
    return remark(job_status, Happening.NOTE, end.at, observer=end.observer, message=told)
