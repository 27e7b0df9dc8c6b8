"""What only Prefect knows of a run when its Method's code has ended: when it was paused, and its task runs.

Law: Prefect is asked only where there is something to know, because each
question costs ten milliseconds and most runs have neither pauses nor tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from prefect.task_runners import ThreadPoolTaskRunner

from prefect_executions.capture.secrets import SecretMask, redact_urls
from prefect_executions.errors import OrchestratorError
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.flow import prefect_logs
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry
from prefect_executions.lifecycle.status import Observer
from prefect_executions.prefect_api import flow_runs

if TYPE_CHECKING:
    from prefect.context import FlowRunContext

PATIENCE = 2.0
"""Seconds that are waited until Prefect's API knows the end of each task; it takes 0.1 to 0.8 on two busy cores."""

_PAUSE = 0.05


def with_pauses(job_status: JobStatus, at: datetime) -> JobStatus:
    """Return *job_status* with the pauses of this process, of which nothing was heard while they lasted."""
    try:
        return flow_runs.merge_prefect_history(job_status)
    except OrchestratorError as error:
        return _note(job_status, at, f"the run was paused, and Prefect does not tell when: {error}")


def tasks_ran(context: FlowRunContext, heard: Iterable[prefect_logs.TaskLog]) -> bool:
    """Whether a task of this flow run may have run, or another flow been called.

    Prefect's context counts calls of flows and keeps some results. What a task
    returns may be untrackable (None), so the word of its logger is needed; and
    where that is silent, or in another process, nobody knows.
    """
    unheard = not prefect_logs.tell_of_tasks() or not isinstance(context.task_runner, ThreadPoolTaskRunner)
    return bool(unheard or set(heard) or context.task_run_dynamic_keys or context.run_results)


def with_steps(
    job_status: JobStatus, heard: Iterable[prefect_logs.TaskLog], mask: SecretMask, clock: Callable[[], datetime]
) -> JobStatus:
    """Return *job_status* with the task runs of its flow run; waits until Prefect knows the end of those that ended.

    What it does not know after `PATIENCE` is told in a note.
    """
    flow_run_id = ExecutionId.parse(job_status.job_id).flow_run_id
    ended = {one.task_run_id for one in heard if one.ended and one.flow_run_id == flow_run_id}
    until = time.monotonic() + PATIENCE
    while True:
        try:
            told = flow_runs.steps(job_status, lambda name: redact_urls(mask.mask(name)))
        except OrchestratorError as error:
            return _note(job_status, clock(), f"the steps are not told: {error}")
        missing = ended - {str(step.id) for step in told if step.ended}
        if not missing or time.monotonic() >= until:
            break
        time.sleep(_PAUSE)
    if told:
        job_status = job_status.model_copy(update={"steps": told})
    if missing:
        note = f"Prefect did not tell the end of {len(missing)} steps in time: {', '.join(sorted(missing)[:10])}"
        job_status = _note(job_status, clock(), note)
    return job_status


def _note(job_status: JobStatus, at: datetime, message: str) -> JobStatus:
    return add_entry(job_status, EntryKind.NOTE, at, observer=Observer.HOOK, message=redact_urls(message))
