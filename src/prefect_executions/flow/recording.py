"""What runs around a Method's own code inside the flow: open the record, stage, run, gather.

Law: before the work, refuse; after the work, never lose. Until the author's
function is called any failure ends the run with a clear error; from then on no
failure of ours changes what the function returned or raised.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.logging.loggers import flow_run_logger
from prefect.utilities.timeout import timeout, timeout_async

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.host import Meter
from prefect_executions.capture.secrets import SecretMask, mask_names
from prefect_executions.capture.streams import Streams, open_streams
from prefect_executions.documents import Document
from prefect_executions.events import progressed
from prefect_executions.executions.record import ExecuteRequest, ExecutionRecord, Metrics, OpeningRecord, ScriptRun
from prefect_executions.flow import prefect_logs
from prefect_executions.flow.background import Action, defer, take_deferred, wait_for_submitted_tasks
from prefect_executions.flow.cancellation import CancellationWatcher
from prefect_executions.flow.context import Execution, Metadata, RecordSink, enter, running_id
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.inputs import Inputs
from prefect_executions.flow.invocation import image_asked, notify_gathered, notify_opened, owns_process
from prefect_executions.flow.opening import Resumption, continued, now, opening, seen_late, taken_over, workbench_for
from prefect_executions.flow.outcome import attempt_failed, mask_error, merge_usage, outcome, suspended
from prefect_executions.flow.prefect_facts import tasks_ran, with_pauses, with_steps
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry, advance
from prefect_executions.lifecycle.status import Observer, Status
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.prefect_api import flow_runs
from prefect_executions.settings import Settings
from prefect_executions.tracepoints import TracePoint, trace_point
from prefect_executions.workbench.recovery import resume, suspend

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


_SHOW_SECONDS = 2.0


def recorded(declared: Declared) -> Callable[..., Any]:
    """Return the author's function with the record kept around it.

    Called outside a flow run it is the author's function and nothing else.
    """
    function = declared.function

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        recording = Recording.around(declared, whole, args, kwargs)
        if recording is None:
            return function(*args, **kwargs)
        with recording.kept() as bound, timeout(seconds=recording.limit, timeout_exc_type=TimeoutError):
            return function(*bound.args, **bound.kwargs)

    @wraps(function)
    async def run_async(*args: Any, **kwargs: Any) -> Any:
        recording = Recording.around(declared, whole, args, kwargs)
        if recording is None:
            return await cast("Awaitable[Any]", function(*args, **kwargs))
        async with recording.kept_async() as bound:
            with timeout_async(seconds=recording.limit, timeout_exc_type=TimeoutError):
                return await function(*bound.args, **bound.kwargs)

    whole: Callable[..., Any] = run_async if inspect.iscoroutinefunction(function) else run
    return whole


class Recording:
    """The record around one call of a Method's function: one attempt of one execution."""

    def __init__(self, declared: Declared, context: FlowRunContext, bound: inspect.BoundArguments) -> None:
        assert context.flow_run is not None  # noqa: S101 - `around` looked
        self.declared = declared
        self.context = context
        self.run: FlowRun = context.flow_run
        self.bound = bound
        self.retries = context.flow.retries if context.flow else 0
        self.log = flow_run_logger(self.run, context.flow)
        self.image = image_asked()
        chosen = {"runtime": self.image.runtime} if self.image else {}
        self.settings = Settings.read().model_copy(update=chosen)
        self.workbench = workbench_for(self.settings)
        self.mask = SecretMask()
        self.meter = Meter()
        self.bundle: OpenBundle | None = None
        self.record: ExecutionRecord | None = None
        self.turn: Resumption | None = None
        self.heard: set[prefect_logs.TaskLog] = set()
        self.execution: Execution | None = None
        self.streams: Streams | None = None
        self.reins: CancellationWatcher | None = None
        self.staged: Mapping[str, tuple[Path, ...]] = {}
        self._leave: list[Callable[[], None]] = []
        self._show_next = 0.0

    @classmethod
    def around(
        cls, declared: Declared, whole: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Recording | None:
        """Return the recording for the flow run that is calling *whole*, or None outside one.

        A call of the plain function from inside its own or another run is just a call.
        """
        context = FlowRunContext.get()
        if context is None or context.flow_run is None or getattr(context.flow, "fn", None) is not whole:
            return None
        if running_id() == str(context.flow_run.id):
            return None
        bound = inspect.signature(declared.function).bind(*args, **kwargs)
        bound.apply_defaults()
        return cls(declared, context, bound)

    @property
    def limit(self) -> float | None:
        """Seconds that the author's code may take: the shorter of the author's limit and the operator's."""
        asked = self.settings.time_limit
        limits = [self.declared.method.time_limit, asked.total_seconds() if asked else None]
        return min((limit for limit in limits if limit), default=None)

    @contextmanager
    def kept(self) -> Iterator[inspect.BoundArguments]:
        """Keep the record around a sync function; yields its arguments, with staged files and secrets."""
        error: BaseException | None = None
        try:
            self._prepare()
            self._start()
            with wait_for_submitted_tasks(self.context.task_runner):
                yield self.bound
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._stop(error)
            self._finish(error)

    @asynccontextmanager
    async def kept_async(self) -> AsyncIterator[inspect.BoundArguments]:
        """Do the same around an async function; what may take long goes to a thread, so that the loop runs on."""
        error: BaseException | None = None
        try:
            await asyncio.to_thread(self._prepare)
            self._start()
            with wait_for_submitted_tasks(self.context.task_runner):
                yield self.bound
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._stop(error)
            if error is None or isinstance(error, Exception):
                await asyncio.to_thread(self._finish, error)
            else:  # a cancelled task cannot wait for a thread
                self._finish(error)

    def _prepare(self) -> None:
        """Open the record, resolve secrets, stage inputs."""
        self.meter.start()
        inputs = Inputs(self.declared, self.bound)
        self.record, self.bundle = self._open(inputs.values())
        notify_opened(self.record.id)
        request = self.record.request
        if inputs.files():  # staging may take long, and may be the end of the machine
            self.workbench.announce(self.record)
            defer(self.record.id, row=partial(self.workbench.index_open, self.record))
        secrets = inputs.resolve_secrets(os.environ, self.mask)
        self._show_next = time.monotonic() + _SHOW_SECONDS
        staged = inputs.stage(self.bundle, request.archive, self.settings, self._show_staging)
        if secrets or staged:
            told = request.model_dump(exclude={"inputs"}, by_alias=False) | {"files": staged}
            request = ExecuteRequest(**told | {"values": request.values | secrets})
            self.record = replace(self.record, request=request)
            self.bundle.write_document(request)
        self.bound = inputs.bound
        self.staged = inputs.staged
        trace_point(TracePoint.STAGED, self.record.id)

    def _open(self, values: Mapping[str, Any]) -> tuple[ExecutionRecord, OpenBundle]:
        place = self.workbench.next_place(str(self.run.id), revisited=self.run.run_count > 1)
        heard = flow_runs.current_states(self.run)
        suspensions = [one.state.id for one in heard if one.state.type == "PAUSED"]
        if suspensions:
            place = resume(self.workbench, place, suspensions[-1])
        if place.bundle is not None:
            self.turn = continued(place.bundle.record(), self.declared, self.run, heard, self.settings)
            return self.turn.record, place.bundle
        opened = opening(self.declared, self.run, place.id, values, self.settings, heard=heard)
        left = self.workbench.archive.opening(place.id) if self.run.run_count > 1 else None
        if left is not None:
            self.turn = taken_over(opened.record, OpeningRecord.from_json(left).record(), heard)
            opened = opened._replace(record=self.turn.record)
        return opened.record, self.workbench.begin(opened.record, opened.code)

    def _start(self) -> None:
        """Take the streams and mark EXECUTING; the author's code begins when this returns."""
        record, bundle = self._opened()
        if self.settings.capture_streams:
            self.streams = open_streams(
                bundle.paths.outputs,
                owns_process=owns_process(self.run),
                mask=self.mask,
                forward=prefect_logs.forwarder(self.run),
            )
            if self.turn:
                self.streams.mark(self.turn.headline)
        if self.turn:
            bundle.write_document(record.infrastructure)
            bundle.write_document(record.instance)
        self._leave.append(prefect_logs.enter(self.streams, self.mask, self.heard))
        job_status = record.job_status
        if not self.declared.is_scripted:
            job_status = advance(job_status, Status.EXECUTING, now(), observer=Observer.HOOK)
        executing = replace(record, job_status=job_status)
        self.workbench.announce(executing)  # refused, the Method's code has not begun
        self.record = executing
        bundle.write_document(job_status)
        self.execution = Execution(
            metadata=Metadata(
                execution_id=record.id,
                method=record.method,
                request=record.request,
                attempt=job_status.attempt,
                started=job_status.started,
            ),
            output_path=bundle.output_path,
            staged=self.staged,
            job_status=job_status,
            metrics=record.metrics or Metrics(),
            telling=self._telling(bundle),
            clock=now,
        )
        task = asyncio.current_task() if inspect.iscoroutinefunction(self.declared.function) else None
        self.reins = CancellationWatcher(self.run, bundle, own=owns_process(self.run), task=task)
        self.reins.take()
        with self._never_losing("beginning to watch and tell"):
            self._soon(job_status, watch=self.reins.watch)
        self._leave.append(enter(self.execution))
        trace_point(TracePoint.EXECUTING, record.id)

    def executing(self, at: datetime) -> None:
        """Mark EXECUTING: the main script of a descriptor Method began *at* that time; never raises."""
        if self.execution is None:
            return
        job_status = self.execution.change(lambda told: advance(told, Status.EXECUTING, at, observer=Observer.HOOK))
        self.record = replace(self._opened()[0], job_status=job_status)
        with self._never_losing("announcing that it executes"):
            self.workbench.announce(self.record)
            self._soon(job_status)

    def _soon(self, job_status: JobStatus, **acts: Action) -> None:
        record, _ = self._opened()
        row, tell = partial(self.workbench.index_open, record), partial(prefect_events.emit_changes, job_status)
        defer(record.id, row=row, tell=tell, **acts)

    def ran(self, run: ScriptRun) -> None:
        """Tell in the record where scripts of a descriptor Method really ran; never raises."""
        record, bundle = self._opened()
        told = record.instance.model_copy(update={"runs": (*(record.instance.runs or ()), run)})
        self.record = replace(record, instance=told)
        self._write(bundle, told)

    def _stop(self, error: BaseException | None) -> None:
        """Give the streams back and write what was used and how the code ended; never raises."""
        told: tuple[JobStatus, Metrics | None] | None = None
        if self.reins is not None:
            trace_point(TracePoint.RETURNED, str(self.run.id))
            with self._never_losing("ending what it has started"):
                self.reins.leave(error, self.limit)
        if self.execution is not None:
            with self._never_losing("telling the last progress"):  # while the logs are still open
                told = self.execution.close()
        ended: dict[str, Any] = {}
        with self._never_losing("masking the error"):
            mask_error(error, self.mask)
            ended = outcome(error, self.mask)
        if self.streams is not None and "exception" in ended and self._comes_again(error):
            self.streams.append_line("stderr", ended["exception"].traceback)  # Prefect's line comes when it is closed
        for leave in reversed(self._leave):
            with self._never_losing("leaving the execution"):
                leave()
        if self.streams is not None:
            with self._never_losing("closing the logs"):
                self.streams.close()
            trace_point(TracePoint.LOGS_CLOSED, str(self.run.id))
        if self.bundle is not None and self.record is not None:
            job_status, metrics = told or (self.record.job_status, None)
            with self._never_losing("telling how the attempt ended"):
                job_status = self._turned(job_status, error, ended)
            with self._never_losing("masking the names of outputs"):
                job_status = self._renamed(self.bundle, job_status)
            usage = merge_usage(self.record.instance.usage, self.meter.stop().model_copy(update=ended))
            changed = [] if job_status is self.record.job_status else [job_status]
            self.record = replace(self.record, job_status=job_status)
            self._write(self.bundle, self.record.instance.model_copy(update={"usage": usage}), *changed, metrics)

    def _turned(self, job_status: JobStatus, error: BaseException | None, ended: Mapping[str, Any]) -> JobStatus:
        if isinstance(error, Pause):
            return suspended(job_status, error)
        if self._comes_again(error):
            return attempt_failed(job_status, ended["exception"], now(), timed_out=isinstance(error, TimeoutError))
        return job_status

    def _renamed(self, bundle: OpenBundle, job_status: JobStatus) -> JobStatus:
        renamed = mask_names(bundle.paths.outputs, self.mask)
        if not renamed:
            return job_status
        told = f"a secret in the names of these outputs is masked: {', '.join(renamed)}"
        return add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=told)

    def _write(self, bundle: OpenBundle, *documents: Document | None) -> None:
        for document in documents:
            if document is not None:
                with self._never_losing(f"writing {document.file_name}"):
                    bundle.write_document(document)

    def _finish(self, error: BaseException | None) -> None:
        """Do the heavy part of sealing, if this attempt is the last; never raises."""
        if self.bundle is None or self.record is None:
            return
        if isinstance(error, Pause):  # the run is suspended and its process may end
            self.workbench.leases.release(self.record.id)
            take_deferred(self.record.id)  # what waits there knows nothing of the suspension
            self.workbench.index_open(self.record)
            with self._never_losing("telling events"):
                prefect_events.emit_changes(self.record.job_status)
            with self._never_losing("keeping the suspended bundle in the archive"):
                suspend(self.workbench, self.bundle)
            return
        with self._never_losing("telling pauses and steps"):
            told = self._followed(self.record.job_status, last=not self._comes_again(error))
            if told is not self.record.job_status:
                self._write(self.bundle, told)
        if self._comes_again(error):
            return
        with self._never_losing("telling what the worker saw"):
            there = self.record.infrastructure
            self._write(self.bundle, *(seen_late(self.bundle, there, self.run, self.settings) or ()))
        with self._never_losing("gathering the outputs"):
            self.workbench.gather(self.bundle, self.record.request.archive)
        with self._never_losing("handing the outputs over"):
            notify_gathered(self.bundle, error)
        trace_point(TracePoint.LEFT, self.record.id)

    def _followed(self, job_status: JobStatus, *, last: bool) -> JobStatus:
        """Tell what Prefect alone knows, and is asked only where there is something to know."""
        if self.context.observed_flow_pauses:
            job_status = with_pauses(job_status, now())
        if last and (self.turn or tasks_ran(self.context, self.heard)):
            job_status = with_steps(job_status, self.heard, self.mask, now)
        return job_status

    def _comes_again(self, error: BaseException | None) -> bool:
        """Whether Prefect will try again: its rule RetryFailedFlows compares the run count with the retries."""
        return isinstance(error, Exception) and self.run.run_count <= self.retries

    def _opened(self) -> tuple[ExecutionRecord, OpenBundle]:
        assert self.record is not None  # noqa: S101 - _prepare opened it or raised
        assert self.bundle is not None  # noqa: S101 - the same
        return self.record, self.bundle

    @property
    def open_bundle(self) -> OpenBundle:
        """The bundle, while the Method's code runs."""
        return self._opened()[1]

    def _telling(self, bundle: OpenBundle) -> RecordSink:
        record, _ = self._opened()
        shown = prefect_events.Progress(None)
        context = copy_context()  # the thread that tells has no flow run of its own

        def show(percent: float, message: str | None) -> None:
            nonlocal shown
            event = progressed(record.id, record.method.id, percent, message, now())
            context.run(prefect_events.emit, [event])
            shown = context.run(prefect_events.show_progress, shown, self.run.id, percent, message)

        return RecordSink(
            write_status=bundle.write_document,
            write_metrics=bundle.write_document,
            show_progress=show,
            log=lambda text: context.run(self.log.info, "%s", text),
            failed=lambda text: context.run(self.log.warning, "%s", text),
            mask=self.mask.mask,
        )

    def _show_staging(self, name: str, done: int, total: int | None) -> None:
        if time.monotonic() >= self._show_next:
            self._show_next = time.monotonic() + _SHOW_SECONDS
            self.log.info("input '%s': %s of %s bytes", name, done, "?" if total is None else total)

    @contextmanager
    def _never_losing(self, doing: str) -> Iterator[None]:
        """Keep a failure of ours from changing what the Method did; it is told and settled later."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - law 3: after the work, never lose
            with suppress(Exception):
                self.log.warning("execution %s: %s failed and is left to settle: %s", self.run.id, doing, error)
