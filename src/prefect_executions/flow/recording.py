"""Recording of one attempt of an execution: `for_call`, then `session` or `session_async` around the author's code.

Law: before the work, refuse; after the work, never lose. Until the author's
function is called, a failure ends the run with a clear error. From then on, no
failure of the recording changes what the function returned or raised.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial, wraps
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from prefect.exceptions import Pause
from prefect.utilities.timeout import timeout, timeout_async

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.opened_files import ignore
from prefect_executions.capture.packages import requirements_of
from prefect_executions.capture.parameters import described_by, masked_metrics, masked_record, recorded_param
from prefect_executions.capture.streams import open_streams
from prefect_executions.documents import Document
from prefect_executions.events import progress_event
from prefect_executions.executions.record import (
    ExecuteRequest,
    ExecutionRecord,
    Instance,
    Metrics,
    OpeningRecord,
    ScriptRun,
)
from prefect_executions.flow import prefect_logs
from prefect_executions.flow.background import PATIENCE, Action, defer, take_deferred, wait_for_submitted_tasks
from prefect_executions.flow.call import Call, for_call, without_frames
from prefect_executions.flow.cancellation import CancellationWatcher
from prefect_executions.flow.context import Execution, Metadata, RecordSink, enter
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.hints import undeclared_files, with_hints, with_masked_names
from prefect_executions.flow.inputs import Inputs, staging_progress
from prefect_executions.flow.invocation import owns_process
from prefect_executions.flow.opening import (
    Resumption,
    continued,
    late_worker_facts,
    now,
    opening,
    parent_of,
    taken_over,
    with_failures,
    with_secrets_noted,
)
from prefect_executions.flow.outcome import attempt_failed, mask_error, merge_usage, outcome, raised, suspended
from prefect_executions.flow.prefect_facts import with_prefect_facts
from prefect_executions.flow.recorded_code import with_late_code, with_undeclared_files
from prefect_executions.flow.returned import returned_value
from prefect_executions.flow.unhooked import NO_STATE, for_prefect, report_interruption, seal_aborted
from prefect_executions.lifecycle.history import JobStatus, advance
from prefect_executions.lifecycle.status import Observer, Status
from prefect_executions.methods.model import REQUIREMENTS
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.prefect_api import flow_runs
from prefect_executions.tracepoints import TracePoint, trace_point
from prefect_executions.workbench.recovery import resume, suspend


def recorded(declared: Declared) -> Callable[..., Any]:
    """Return the author's function, recorded when it is called as a flow run.

    Outside a flow run it only calls the author's function.
    """
    function = declared.function

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        call = for_call(declared, entry, args, kwargs)
        if call is None:
            return function(*args, **kwargs)
        with session(call) as running, timeout(seconds=call.time_limit, timeout_exc_type=TimeoutError):
            returned = function(*call.arguments.args, **call.arguments.kwargs)
            running.returned.append(returned)
        return for_prefect(call, returned)

    @wraps(function)
    async def run_async(*args: Any, **kwargs: Any) -> Any:
        call = for_call(declared, entry, args, kwargs)
        if call is None:
            return await cast("Awaitable[Any]", function(*args, **kwargs))
        async with session_async(call) as running:
            with timeout_async(seconds=call.time_limit, timeout_exc_type=TimeoutError):
                returned = await function(*call.arguments.args, **call.arguments.kwargs)
                running.returned.append(returned)
        return for_prefect(call, returned)

    entry: Callable[..., Any] = run_async if inspect.iscoroutinefunction(function) else run
    return entry


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt of an execution, with its open record as last written."""

    call: Call
    inputs: Inputs
    record: ExecutionRecord
    bundle: OpenBundle
    resumption: Resumption | None
    masked: int
    """The size of the mask that was applied to the record."""


@dataclass(frozen=True, kw_only=True)
class RunningAttempt:
    """An attempt whose author's code runs."""

    attempt: Attempt
    execution: Execution
    script_runs: list[ScriptRun] = field(default_factory=list)
    returned: list[Any] = field(default_factory=list, repr=False)
    """What the author's function returned; empty before its end."""


@contextmanager
def session(call: Call) -> Iterator[RunningAttempt]:
    """Record the block as one attempt of an execution.

    Raises:
        ExecutionsError: If the record cannot be opened or an input cannot be staged; the block did not run.
    """
    with call.sharing_secrets():
        error: BaseException | None = None
        running: RunningAttempt | None = None
        with call.masking_errors():
            attempt = open_attempt(call)
        try:
            attempt = stage(attempt)
            with _running(attempt) as running, wait_for_submitted_tasks(call.context.task_runner):
                yield running
        except BaseException as raised_error:
            error = raised_error
            raise
        finally:
            finish(write_end(attempt, running, error), running, error)


@asynccontextmanager
async def session_async(call: Call) -> AsyncIterator[RunningAttempt]:
    """Do what `session` does, with the slow parts in threads so that the event loop keeps running."""
    with call.sharing_secrets():
        error: BaseException | None = None
        running: RunningAttempt | None = None
        with call.masking_errors():
            attempt = await asyncio.to_thread(open_attempt, call)
        try:
            attempt = await asyncio.to_thread(stage, attempt)
            with _running(attempt) as running, wait_for_submitted_tasks(call.context.task_runner):
                yield running
        except BaseException as raised_error:
            error = raised_error
            raise
        finally:
            # Not in a thread: a full pool or a cancellation would lose how the attempt ended, and the masking of its
            # error.
            ended = write_end(attempt, running, error)
            if error is None or isinstance(error, Exception):
                await asyncio.to_thread(finish, ended, running, error)
            else:  # a cancelled task cannot wait for a thread
                finish(ended, running, error)


@without_frames
def open_attempt(call: Call) -> Attempt:
    """Open the record of *call*, or continue the open record of an earlier attempt."""
    call.meter.start()
    ignore(*map(str, call.settings.local_folders))
    inputs, run, workbench = Inputs(call.declared, call.arguments), call.run, call.workbench
    parent = parent_of(run, call.settings)
    unknown = call.secrets.inherit(workbench, parent, os.environ)
    inputs.register_secrets(os.environ, call.secrets, call.settings.secret_names)
    place = workbench.next_slot(str(run.id), revisited=run.run_count > 1)
    states = flow_runs.current_states(run)
    suspensions = [observed.state.id for observed in states if observed.state.type == "PAUSED"]
    if suspensions:
        place = resume(workbench, place, suspensions[-1])
    resumption: Resumption | None
    bundle = place.bundle
    if bundle is not None:
        resumption = continued(bundle.record(), call.declared, run, states, call.settings)
        record, masked = masked_record(resumption.record, call.mask), call.mask.size
        if described_by(record) != described_by(resumption.record):  # written before a secret became known
            bundle.write_document(record.request)
            bundle.write_document(record.infrastructure)
    else:
        values = inputs.recorded(call.settings.secret_names)
        record, code = opening(call.declared, run, place.id, values, call.settings, states=states, parent=parent)
        archived = workbench.archive.opening(place.id) if run.run_count > 1 else None
        opened = OpeningRecord.of_execution(place.id, archived).record() if archived is not None else None
        resumption = taken_over(record, opened, states) if opened is not None else None
        masked = call.mask.size
        record = with_secrets_noted(masked_record(resumption.record if resumption else record, call.mask), unknown)
        bundle = workbench.begin(record, code)
    call.secrets.open(bundle)
    return Attempt(call=call, inputs=inputs, record=record, bundle=bundle, resumption=resumption, masked=masked)


@without_frames
def stage(attempt: Attempt) -> Attempt:
    """Put secrets and staged files into the arguments; return the attempt with both in its record.

    Raises:
        ExecutionsError: If a secret cannot be resolved or a file cannot be staged.
    """
    call, inputs, record = attempt.call, attempt.inputs, attempt.record
    call.report_opened(record.id)
    if inputs.files():  # staging may take long, and the machine may fail meanwhile
        call.workbench.announce(record)
        defer(record.id, row=partial(call.workbench.index_open, record))
    secrets = inputs.resolve_secrets()
    staged = inputs.stage(attempt.bundle, record.request.archive, call.settings, staging_progress(call.log), call.mask)
    if secrets or staged:
        fields = record.request.model_dump(exclude={"inputs"}, by_alias=False) | {"files": staged}
        record = replace(record, request=ExecuteRequest(**fields | {"values": record.request.values | secrets}))
        attempt.bundle.write_document(record.request)
    trace_point(TracePoint.STAGED, record.id)
    return replace(attempt, record=record)


@contextmanager
def _running(attempt: Attempt) -> Iterator[RunningAttempt]:
    """Mark EXECUTING; capture the block's streams, let it find its execution, and watch for cancellation."""
    call, record, bundle = attempt.call, attempt.record, attempt.bundle
    with _captured_streams(attempt):
        if attempt.resumption:
            bundle.write_document(record.infrastructure)
            bundle.write_document(record.instance)
            bundle.write(REQUIREMENTS, requirements_of(record.instance.packages))
        job_status = record.job_status
        if not call.declared.is_scripted:
            job_status = advance(job_status, Status.EXECUTING, now(), observer=Observer.HOOK)
        record = replace(record, job_status=job_status)
        without_frames(call.workbench.announce)(record)  # may refuse: the Method's code has not begun
        bundle.write_document(job_status)
        running = RunningAttempt(
            attempt=replace(attempt, record=record), execution=_execution(call, record, bundle, attempt.inputs)
        )
        with _watched(running), enter(running.execution):
            trace_point(TracePoint.EXECUTING, record.id)
            yield running


@contextmanager
def _captured_streams(attempt: Attempt) -> Iterator[None]:
    """Write stdout, stderr and Prefect's log of the run into the bundle while the block runs."""
    call, bundle, resumption, streams = attempt.call, attempt.bundle, attempt.resumption, None
    if call.settings.capture_streams:
        streams = open_streams(
            bundle.paths.outputs,
            owns_process=owns_process(call.run),
            mask=call.mask,
            forward=prefect_logs.forwarder(call.run),
        )
    try:
        if streams and resumption:
            streams.mark(resumption.headline)
        with prefect_logs.enter(streams, call.mask, call.task_logs):
            yield
    except Exception as error:
        if streams and call.will_retry(error):  # Prefect logs the traceback only when these logs are closed
            with call.never_losing("logging the error"):
                mask_error(error, call.mask)
                streams.append_line("stderr", raised(error, call.mask).traceback)
        raise
    finally:
        if streams:
            with call.never_losing("closing the logs"):
                streams.close()
            trace_point(TracePoint.LOGS_CLOSED, str(call.run.id))


@contextmanager
def _watched(running: RunningAttempt) -> Iterator[None]:
    """Watch for cancellation; afterwards end the processes of a stopped Method and write the last progress."""
    call, attempt = running.attempt.call, running.attempt
    task = asyncio.current_task() if inspect.iscoroutinefunction(call.declared.function) else None
    watcher = CancellationWatcher(call.run, attempt.bundle, own=owns_process(call.run), task=task)
    error: BaseException | None = None
    try:
        watcher.take()
        with call.never_losing("starting to watch for cancellation"):
            _index_soon(call, attempt.record, watch=watcher.watch)
        yield
    except BaseException as raised_error:
        error = raised_error
        raise
    finally:
        trace_point(TracePoint.RETURNED, str(call.run.id))
        with call.never_losing("ending the Method's processes"):
            watcher.leave(error, call.time_limit)
        with call.never_losing("writing the last progress"):  # while the logs are still open
            running.execution.close()


def _execution(call: Call, record: ExecutionRecord, bundle: OpenBundle, inputs: Inputs) -> Execution:
    job_status = record.job_status
    return Execution(
        metadata=Metadata(
            execution_id=record.id,
            method=record.method,
            request=record.request,
            attempt=job_status.attempt,
            started=job_status.started,
        ),
        output_path=bundle.output_path,
        staged=inputs.staged,
        job_status=job_status,
        metrics=record.metrics or Metrics(),
        sink=_record_sink(call, record, bundle),
        clock=now,
    )


def _record_sink(call: Call, record: ExecutionRecord, bundle: OpenBundle) -> RecordSink:
    artifact = prefect_events.Progress(None)
    context = copy_context()  # the thread that calls the sink has no flow run context

    def show(percent: float, message: str | None) -> None:
        nonlocal artifact
        event = progress_event(record.id, record.method.id, percent, message, now())
        context.run(prefect_events.emit, [event])
        artifact = context.run(prefect_events.show_progress, artifact, call.run.id, record.method.id, percent, message)

    return RecordSink(
        write_status=bundle.write_document,
        write_metrics=bundle.write_document,
        show_progress=show,
        log=lambda text: context.run(call.log.info, "%s", text),
        failed=lambda text: context.run(call.log.warning, "%s", text),
        mask=call.mask.mask,
        param=partial(recorded_param, names=call.settings.secret_names),
    )


def _index_soon(call: Call, record: ExecutionRecord, **actions: Action) -> None:
    row = partial(call.workbench.index_open, record)
    defer(record.id, row=row, events=partial(prefect_events.emit_changes, record.job_status), **actions)


def mark_executing(running: RunningAttempt, at: datetime) -> None:
    """Mark EXECUTING: the main script of a descriptor Method began *at* that time; never raises."""
    call = running.attempt.call
    job_status = running.execution.change(partial(advance, to=Status.EXECUTING, at=at, observer=Observer.HOOK))
    record = replace(running.attempt.record, job_status=job_status)
    with call.never_losing("announcing EXECUTING"):
        call.workbench.announce(record)
        _index_soon(call, record)


def add_script_run(running: RunningAttempt, script_run: ScriptRun) -> None:
    """Record where scripts of a descriptor Method ran; never raises."""
    running.script_runs.append(script_run)
    _write(running.attempt, _instance(running.attempt, running))


def write_end(attempt: Attempt, running: RunningAttempt | None, error: BaseException | None) -> Attempt:
    """Write usage, exception, metrics and job status; return the attempt as written; never raises.

    *running* is None if the author's code did not begin. The secrets in *error* are masked.
    """
    call = attempt.call
    attempt = running.attempt if running else attempt
    written = attempt.record.job_status
    job_status: JobStatus = written
    metrics: Metrics | None = None
    if running:
        with call.never_losing("writing the last progress"):
            job_status, metrics = running.execution.close()
    ended: dict[str, Any] = {}
    with call.never_losing("recording how the attempt ended"):
        mask_error(error, call.mask)
        ended = outcome(error, call.mask)
        job_status = _with_end(call, job_status, error, ended)
    with call.never_losing("recording the returned value"):
        if running and running.returned:
            ended["returned"] = returned_value(running.returned[-1], call.mask, call.settings.secret_names)
    with call.never_losing("masking the names of outputs"):
        job_status = with_masked_names(job_status, attempt.bundle.paths, call.mask)
    if running:
        with call.never_losing("noting what the record lacks"):
            job_status = with_hints(job_status, call, attempt.record, attempt.bundle.paths)
    with call.never_losing("masking secrets that became known later"):
        if call.mask.size != attempt.masked:
            record = with_secrets_noted(masked_record(replace(attempt.record, job_status=job_status), call.mask), ())
            if described_by(record) != described_by(attempt.record):
                _write(attempt, record.request, record.infrastructure)  # the instance is written below
                call.workbench.announce(record)
            attempt, job_status = replace(attempt, record=record), record.job_status
            metrics = metrics and masked_metrics(metrics, call.mask)
    instance = _instance(attempt, running)
    usage = merge_usage(instance.usage, call.meter.stop().model_copy(update=ended))
    job_status = with_failures(job_status, call.meter.failures)
    changed = None if job_status is written else job_status
    _write(attempt, instance.model_copy(update={"usage": usage}), changed, metrics)
    return replace(attempt, record=replace(attempt.record, job_status=job_status))


def finish(attempt: Attempt, running: RunningAttempt | None, error: BaseException | None) -> None:
    """Add late modules and what Prefect knows, and gather the outputs if the attempt was the last; never raises.

    *running* is None if the author's code did not begin. Prefect's hook seals the bundle afterwards.
    """
    call, record = attempt.call, attempt.record
    report_interruption(call, error)
    if running:
        with call.never_losing("recording the modules that were loaded late"):
            _write_late_code(attempt)
    call.report_returned()
    if isinstance(error, Pause):
        _suspend(attempt)
        return
    will_retry = call.will_retry(error)
    with call.never_losing("reading pauses and steps from Prefect"):
        resumed = bool(attempt.resumption)
        with_prefect = with_prefect_facts(call, record.job_status, resumed=resumed, last=not will_retry, clock=now)
        if with_prefect is not record.job_status:
            _write(attempt, with_prefect)
    if will_retry:
        return
    with call.never_losing("reading what the worker reported"):
        late = late_worker_facts(attempt.bundle, record.infrastructure, call.run, call.settings)
        _write(attempt, *(late or ()))
    with call.never_losing("gathering the outputs"):
        call.workbench.gather(attempt.bundle, record.request.archive)
    with call.never_losing("calling on_gathered"):
        call.invocation.on_gathered(attempt.bundle, error)
    if isinstance(error, NO_STATE):
        seal_aborted(call, error)
    trace_point(TracePoint.LEFT, record.id)


def _instance(attempt: Attempt, running: RunningAttempt | None) -> Instance:
    instance, runs = attempt.record.instance, running.script_runs if running else []
    return instance.model_copy(update={"runs": (*(instance.runs or ()), *runs)}) if runs else instance


def _with_end(call: Call, job_status: JobStatus, error: BaseException | None, ended: Mapping[str, Any]) -> JobStatus:
    if isinstance(error, Pause):
        return suspended(job_status, error)
    if call.will_retry(error):
        return attempt_failed(job_status, ended["exception"], now(), timed_out=isinstance(error, TimeoutError))
    return job_status


def _write_late_code(attempt: Attempt) -> None:
    """Add the modules that the author's code loaded to the record; the opening record stays as it was."""
    call, bundle = attempt.call, attempt.bundle
    origins = map(urlsplit, (file.origin for file in attempt.record.request.files))
    inputs = [unquote(origin.path) for origin in origins if origin.scheme == "file"]
    undeclared = undeclared_files(call, attempt.record)
    method, code = with_late_code(
        call.declared,
        attempt.record.method,
        call.start,
        begun=call.begun,
        apart=inputs,
        inputs=[path for paths in undeclared.values() for path in paths],
        mask=call.mask,
        names=call.settings.secret_names,
    )
    method = with_undeclared_files(method, undeclared, attempt.record.request, call.mask)
    if method is not attempt.record.method:
        bundle.write_document(method)  # first: a file that no document lists would be a fault if this process died
        for path, data in code.items():
            bundle.write(path, data)


def _suspend(attempt: Attempt) -> None:
    """Release a suspended execution: its process may end."""
    call, record = attempt.call, attempt.record
    call.workbench.leases.release(record.id)
    take_deferred(record.id, patience=PATIENCE)  # deferred actions hold the job status from before the suspension
    call.workbench.index_open(record)
    with call.never_losing("sending events"):
        prefect_events.emit_changes(record.job_status)
    with call.never_losing("archiving the suspended bundle"):
        suspend(call.workbench, attempt.bundle)


def _write(attempt: Attempt, *documents: Document | None) -> None:
    for document in documents:
        if document is not None:
            with attempt.call.never_losing(f"writing {document.file_name}"):
                attempt.bundle.write_document(document)
