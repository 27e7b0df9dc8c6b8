"""A run of a descriptor Method: its replicas run the scripts, and the record follows their phases.

The thread of the run only waits for events of the replicas and records them, so
it can be interrupted at any moment. An interruption ends the running scripts; the
undeploy script gets a few seconds, and the outputs so far are fetched.
"""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

from prefect_executions.bundles.data_folder import INPUTS
from prefect_executions.descriptors.inputs import infrastructure_request
from prefect_executions.executions.record import ScriptRun
from prefect_executions.flow.call import for_call
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.recording import RunningAttempt, add_script_run, mark_executing, session
from prefect_executions.flow.replica import Event, Note, OutputChunk, PhaseEvent, Replica, ReplicaFinished, ReplicaSpec
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry
from prefect_executions.lifecycle.status import Observer, Phase
from prefect_executions.prefect_api import flow_runs
from prefect_executions.runtimes.interface import Resources
from prefect_executions.runtimes.registry import RUNTIMES

_POLL_SECONDS = 0.2
_STOP_SECONDS = 25.0
"""Seconds after an interruption in which the replicas must end; a worker kills this process after 30."""

_FEW = 16
"""Up to so many replicas, each event is written at once; the history of a thousand replicas takes megabytes."""
_WRITE_SECONDS = 0.5


def scripted(declared: Declared) -> Callable[..., None]:
    """Return the function that runs a descriptor Method's scripts, recorded, when it is called as a flow run.

    Outside a flow run it raises `RequestError`.
    """
    function: Callable[..., None] = declared.function

    @wraps(function)
    def run(**inputs: Any) -> None:
        call = for_call(declared, run, (), inputs)
        if call is None:
            function(**inputs)
            return
        with session(call) as running:
            _Replicas(running, _replica_spec(running)).run_to_end()

    return run


def _replica_spec(running: RunningAttempt) -> ReplicaSpec:
    call, bundle = running.attempt.call, running.attempt.bundle
    method, image = call.declared.method, call.invocation.image
    values = {
        name: value
        for name, value in call.arguments.arguments.items()
        if value is not None or (name in method.inputs and method.inputs[name].json_schema.get("nullable"))
    }
    secrets = {name: values.pop(name) for name in method.secrets & values.keys()}
    wanted = infrastructure_request(values)
    return ReplicaSpec(
        bundle=bundle,
        method=method,
        values=values,
        secrets=secrets,
        files=dict(_files(running)),
        mask=call.mask,
        settings=call.settings,
        attempt=running.execution.metadata.attempt,
        image=image.name if image else wanted.image,
        resources=_resources(running, wanted.time_limit),
        replicas=wanted.replicas,
    )


def _resources(running: RunningAttempt, time_limit: float | None) -> Resources:
    """Return the limits of each run of scripts; in a worker's container, a process has the container's limits."""
    call, infrastructure = running.attempt.call, running.attempt.record.infrastructure
    shortest = min((limit for limit in (call.time_limit, time_limit) if limit), default=None)
    settings, runtime = call.settings, RUNTIMES.get(call.settings.runtime)
    runs_images = runtime is not None and runtime.runs_images
    if not runs_images and not flow_runs.shares_its_worker(infrastructure.type):
        return Resources(time_limit=shortest)
    return Resources(cpus=settings.cpus, memory=settings.memory, gpus=settings.gpus, time_limit=shortest)


def _files(running: RunningAttempt) -> Iterator[tuple[str, Path]]:
    """Yield each staged file with its path relative to the inputs folder."""
    attempt = running.attempt
    for paths in attempt.inputs.staged.values():
        for path in paths:
            archived = path.is_relative_to(attempt.bundle.paths.inputs)
            folder = attempt.bundle.paths.inputs if archived else attempt.bundle.scratch / INPUTS
            yield path.relative_to(folder).as_posix(), path


class _Replicas:
    """The replicas of one attempt: runs them in threads and records their events in the thread of the run."""

    def __init__(self, running: RunningAttempt, spec: ReplicaSpec) -> None:
        self._session = running
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._replicas = {number: Replica(spec, number, self._events.put) for number in range(1, spec.replicas + 1)}
        self._unfinished = set(self._replicas)
        self._failures: dict[int, Exception] = {}
        self._partial_lines: dict[tuple[int, str], bytes] = {}
        self._executing = False
        self._next_write = 0.0

    def run_to_end(self) -> None:
        """Run all replicas to their end; raise the interruption of this thread, or the first replica's failure."""
        interruption: BaseException | None = None
        deadline = float("inf")
        for replica in self._replicas.values():
            replica.start()
        while self._unfinished and time.monotonic() < deadline:
            try:
                self._handle_next()
            except BaseException as error:  # noqa: BLE001 - raised below, when all replicas are stopped
                interruption = interruption or error
                deadline = min(deadline, time.monotonic() + _STOP_SECONDS)
                for number in self._unfinished:
                    self._replicas[number].stop()
        if interruption is not None:
            raise interruption
        for number in sorted(self._failures):
            raise self._failures[number]

    def _handle_next(self) -> None:
        try:
            event = self._events.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return
        match event:
            case PhaseEvent():
                self._add_phase(event)
            case OutputChunk():
                _show(event.stream, self._labelled(event))
            case Note():
                self._change(partial(_with_note, note=event))
            case ScriptRun():
                add_script_run(self._session, event)
            case ReplicaFinished():
                self._finish(event)

    def _add_phase(self, event: PhaseEvent) -> None:
        if event.phase is Phase.EXECUTE and not event.ended and not self._executing:
            self._executing = True
            mark_executing(self._session, event.at)
        message = event.message and self._session.attempt.call.mask.mask(event.message)
        self._change(partial(_with_phase, event=event._replace(message=message)))

    def _change(self, change: Callable[[JobStatus], JobStatus]) -> None:
        write = len(self._replicas) <= _FEW or time.monotonic() >= self._next_write
        self._next_write = time.monotonic() + _WRITE_SECONDS if write else self._next_write
        self._session.execution.change(change, write=write)

    def _labelled(self, chunk: OutputChunk) -> bytes:
        """Return the text of *chunk*; with several replicas, each line begins with the replica's number."""
        if len(self._replicas) == 1:
            return chunk.data
        key = chunk.number, chunk.stream
        *lines, self._partial_lines[key] = (self._partial_lines.get(key, b"") + chunk.data).split(b"\n")
        return b"".join(b"[%d] %s\n" % (chunk.number, line) for line in lines)

    def _finish(self, event: ReplicaFinished) -> None:
        self._unfinished.discard(event.number)
        for (number, stream), rest in self._partial_lines.items():
            if number == event.number and rest:
                _show(stream, b"[%d] %s\n" % (number, rest))
        if event.error is not None:
            self._failures[event.number] = event.error


def _with_phase(job_status: JobStatus, *, event: PhaseEvent) -> JobStatus:
    """Return *job_status* with the start or the end of a phase."""
    kind = EntryKind.PHASE_ENDED if event.ended else EntryKind.PHASE
    added = add_entry(job_status, kind, event.at, observer=Observer.HOOK, message=event.message)
    fields = {"phase": event.phase, "task": event.task, "exit_code": event.exit_code}
    entry = added.history[-1].model_copy(update=fields)
    return added.model_copy(update={"history": (*added.history[:-1], entry)})


def _with_note(job_status: JobStatus, *, note: Note) -> JobStatus:
    return add_entry(job_status, EntryKind.NOTE, note.at, observer=Observer.HOOK, message=note.text)


def _show(stream: str, data: bytes) -> None:
    """Write to this process's stdout or stderr, which are captured and forwarded as those of any Method."""
    target = sys.stdout if stream == "stdout" else sys.stderr
    buffer = getattr(target, "buffer", None)
    if buffer is None:
        target.write(data.decode("utf-8", "replace"))
    else:
        target.flush()
        buffer.write(data)
        buffer.flush()
