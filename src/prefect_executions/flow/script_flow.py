"""A descriptor Method's scripts on their way through the phases, and what the record tells of them.

The thread of the run itself only listens to its replicas and does all the
telling, so that it can be interrupted at any moment. Then what runs is ended,
undeploy has a few seconds, and what was left is fetched all the same.
"""

from __future__ import annotations

import inspect
import queue
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

from prefect_executions.bundles.data_folder import INPUTS
from prefect_executions.descriptors.inputs import wishes_of
from prefect_executions.executions.record import ScriptRun
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.recording import Recording
from prefect_executions.flow.replica import Event, Note, OutputChunk, PhaseEvent, Replica, ReplicaFinished, ReplicaSpec
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry
from prefect_executions.lifecycle.status import Observer, Phase
from prefect_executions.prefect_api import flow_runs
from prefect_executions.runtimes.interface import Resources
from prefect_executions.runtimes.registry import RUNTIMES

_LOOK = 0.2
_WHEN_STOPPED = 25.0
"""Seconds after an interruption in which the replicas have to end; a worker kills this process after 30."""

_FEW = 16  # replicas whose every moment is written at once; the history of a thousand is megabytes
_SELDOM = 0.5


def scripted(declared: Declared) -> Callable[..., None]:
    """Return what a run of a descriptor Method does, with the record kept around it.

    Called outside a flow run it refuses.
    """
    function: Callable[..., None] = declared.function

    @wraps(function)
    def run(**inputs: Any) -> None:
        recording = Recording.around(declared, run, (), inputs)
        if recording is None:
            function(**inputs)
            return
        with recording.kept() as bound:
            order = _order(recording, bound)
            _Stage(recording, order).see_through()

    return run


def _order(recording: Recording, bound: inspect.BoundArguments) -> ReplicaSpec:
    method, bundle = recording.declared.method, recording.open_bundle
    given = {
        name: value
        for name, value in bound.arguments.items()
        if value is not None or (name in method.inputs and method.inputs[name].json_schema.get("nullable"))
    }
    secrets = {name: given.pop(name) for name in method.secrets & given.keys()}
    wishes, exact = wishes_of(given), recording.image
    return ReplicaSpec(
        bundle=bundle,
        method=method,
        values=given,
        secrets=secrets,
        files=dict(_files(recording)),
        mask=recording.mask,
        settings=recording.settings,
        attempt=recording.execution.metadata.attempt if recording.execution else 1,
        image=exact.name if exact else wishes.image,
        resources=_resources(recording, wishes.time_limit),
        replicas=wishes.replicas,
    )


def _resources(recording: Recording, time_limit: float | None) -> Resources:
    """Return what each run of scripts may use; a process in a container of its own has the container's limits."""
    settings, record = recording.settings, recording.record
    longest = min((limit for limit in (recording.limit, time_limit) if limit), default=None)
    runtime = RUNTIMES.get(settings.runtime)
    in_image = runtime is not None and runtime.runs_images
    if not in_image and record and not flow_runs.shares_its_worker(record.infrastructure.type):
        return Resources(time_limit=longest)
    return Resources(cpus=settings.cpus, memory=settings.memory, gpus=settings.gpus, time_limit=longest)


def _files(recording: Recording) -> Iterator[tuple[str, Path]]:
    """Yield each staged file by the path that it has among the inputs."""
    bundle = recording.open_bundle
    for paths in recording.staged.values():
        for path in paths:
            kept = path.is_relative_to(bundle.paths.inputs)
            yield path.relative_to(bundle.paths.inputs if kept else bundle.scratch / INPUTS).as_posix(), path


class _Stage:
    """Where the replicas play, and from where all is told."""

    def __init__(self, recording: Recording, order: ReplicaSpec) -> None:
        self._recording = recording
        self._told: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._replicas = {number: Replica(order, number, self._told.put) for number in range(1, order.replicas + 1)}
        self._left = set(self._replicas)
        self._failures: dict[int, Exception] = {}
        self._lines: dict[tuple[int, str], bytes] = {}
        self._executing = False
        self._write_next = 0.0

    def see_through(self) -> None:
        """Run all replicas to their end; raises what the first of them failed with, or what has interrupted us."""
        interrupted: BaseException | None = None
        until = float("inf")
        for replica in self._replicas.values():
            replica.start()
        while self._left and time.monotonic() < until:
            try:
                self._hear_next()
            except BaseException as error:  # noqa: BLE001 - raised below, when all that runs was ended
                interrupted = interrupted or error
                until = min(until, time.monotonic() + _WHEN_STOPPED)
                for number in self._left:
                    self._replicas[number].stop()
        if interrupted is not None:
            raise interrupted
        for number in sorted(self._failures):
            raise self._failures[number]

    def _hear_next(self) -> None:
        try:
            event = self._told.get(timeout=_LOOK)
        except queue.Empty:
            return
        match event:
            case PhaseEvent():
                self._tell(event)
            case OutputChunk():
                _show(event.stream, self._labelled(event))
            case Note():
                self._change(_noted, note=event)
            case ScriptRun():
                self._recording.ran(event)
            case ReplicaFinished():
                self._end(event)

    def _tell(self, moment: PhaseEvent) -> None:
        if moment.phase is Phase.EXECUTE and not moment.ended and not self._executing:
            self._executing = True
            self._recording.executing(moment.at)
        self._change(_phased, moment=moment._replace(message=moment.message and self._clean(moment.message)))

    def _change(self, change: Callable[..., JobStatus], **told: Any) -> None:
        if self._recording.execution is not None:
            write = len(self._replicas) <= _FEW or time.monotonic() >= self._write_next
            self._write_next = time.monotonic() + _SELDOM if write else self._write_next
            self._recording.execution.change(partial(change, **told), write=write)

    def _clean(self, text: str) -> str:
        return self._recording.mask.mask(text)

    def _labelled(self, piece: OutputChunk) -> bytes:
        """What is shown of *piece*: among several replicas each line says whose it is."""
        if len(self._replicas) == 1:
            return piece.data
        key = piece.number, piece.stream
        *lines, self._lines[key] = (self._lines.get(key, b"") + piece.data).split(b"\n")
        return b"".join(b"[%d] %s\n" % (piece.number, line) for line in lines)

    def _end(self, done: ReplicaFinished) -> None:
        self._left.discard(done.number)
        for (number, stream), rest in self._lines.items():
            if number == done.number and rest:
                _show(stream, b"[%d] %s\n" % (number, rest))
        if done.error is not None:
            self._failures[done.number] = done.error


def _phased(job_status: JobStatus, *, moment: PhaseEvent) -> JobStatus:
    """Return *job_status* with the beginning or the end of a phase, as our own code saw it."""
    kind = EntryKind.PHASE_ENDED if moment.ended else EntryKind.PHASE
    told = add_entry(job_status, kind, moment.at, observer=Observer.HOOK, message=moment.message)
    of_phase = {"phase": moment.phase, "task": moment.task, "exit_code": moment.exit_code}
    return told.model_copy(update={"history": (*told.history[:-1], told.history[-1].model_copy(update=of_phase))})


def _noted(job_status: JobStatus, *, note: Note) -> JobStatus:
    return add_entry(job_status, EntryKind.NOTE, note.at, observer=Observer.HOOK, message=note.text)


def _show(stream: str, data: bytes) -> None:
    """Write to our own stdout or stderr, which are captured, shown and forwarded as those of any Method."""
    ours = sys.stdout if stream == "stdout" else sys.stderr
    buffer = getattr(ours, "buffer", None)
    if buffer is None:
        ours.write(data.decode("utf-8", "replace"))
    else:
        ours.flush()
        buffer.write(data)
        buffer.flush()
