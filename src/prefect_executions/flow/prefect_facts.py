"""Facts about a finished run that only Prefect has: its pauses and its task runs.

Law: Prefect is queried only if there may be something to read, because each query takes
ten milliseconds and most runs have neither pauses nor tasks.
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

    from prefect_executions.flow.call import Call

PATIENCE = 2.0
"""Seconds to wait until Prefect's API has the end of each task; it takes 0.1 to 0.8 on two busy cores."""

_POLL_SECONDS = 0.05


def with_prefect_facts(
    call: Call, job_status: JobStatus, *, resumed: bool, last: bool, clock: Callable[[], datetime]
) -> JobStatus:
    """Return *job_status* with the pauses of *call* and, after the *last* attempt, with its steps."""
    if call.context.observed_flow_pauses:
        job_status = with_pauses(job_status, clock())
    if last and (resumed or tasks_ran(call.context, call.task_logs)):
        job_status = with_steps(job_status, call.task_logs, call.mask, clock)
    return job_status


def with_pauses(job_status: JobStatus, at: datetime) -> JobStatus:
    """Return *job_status* with the pauses in this process, which were not recorded while they lasted."""
    try:
        return flow_runs.merge_prefect_history(job_status)
    except OrchestratorError as error:
        return _with_note(job_status, at, f"the run was paused; Prefect did not return when: {error}")


def tasks_ran(context: FlowRunContext, task_logs: Iterable[prefect_logs.TaskLog]) -> bool:
    """Whether a task of this flow run may have run, or another flow was called.

    Prefect's context counts calls of flows and holds some results. A task may return an
    untrackable result (None), so its log records count, too. If these are off, or in
    another process, the answer is yes.
    """
    unlogged = not prefect_logs.logs_task_ends() or not isinstance(context.task_runner, ThreadPoolTaskRunner)
    return bool(unlogged or set(task_logs) or context.task_run_dynamic_keys or context.run_results)


def with_steps(
    job_status: JobStatus, task_logs: Iterable[prefect_logs.TaskLog], mask: SecretMask, clock: Callable[[], datetime]
) -> JobStatus:
    """Return *job_status* with the task runs of its flow run; wait until Prefect has the end of each finished one.

    After `PATIENCE` seconds a note lists the ends that are missing.
    """
    flow_run_id = ExecutionId.parse(job_status.job_id).flow_run_id
    ended = {log.task_run_id for log in task_logs if log.ended and log.flow_run_id == flow_run_id}
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            steps = flow_runs.steps(job_status, lambda name: redact_urls(mask.mask(name)))
        except OrchestratorError as error:
            return _with_note(job_status, clock(), f"the steps are missing: {error}")
        missing = ended - {str(step.id) for step in steps if step.ended}
        if not missing or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    if steps:
        job_status = job_status.model_copy(update={"steps": steps})
    if missing:
        ids = ", ".join(sorted(missing)[:10])
        note = f"Prefect did not return the end of {len(missing)} steps in time: {ids}"
        job_status = _with_note(job_status, clock(), note)
    return job_status


def _with_note(job_status: JobStatus, at: datetime, message: str) -> JobStatus:
    return add_entry(job_status, EntryKind.NOTE, at, observer=Observer.HOOK, message=redact_urls(message))
