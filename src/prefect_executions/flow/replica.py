"""One replica of a descriptor Method: its data folder, its process or container, and its phases, in a thread.

Deploy and Execute share one process or container. Undeploy has its own, because a
time limit or a cancellation ends everything in the first. All three scripts
see the same data folder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from pydantic import SecretStr

from prefect_executions import background
from prefect_executions.bundles.data_folder import (
    INPUTS,
    collect_outputs,
    data_folder,
    prepare_data_folder,
    remove_data_folder,
)
from prefect_executions.bundles.layout import CODE, PLANS
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.descriptors.scripts import (
    DEPLOY,
    EXECUTE,
    UNDEPLOY,
    Mark,
    MarkReader,
    Scripts,
    merge_scripts,
    scripts_of,
)
from prefect_executions.errors import ExecutionsError, InfrastructureError, ScriptError
from prefect_executions.executions.record import ScriptRun
from prefect_executions.flow.opening import now
from prefect_executions.lifecycle.status import Phase
from prefect_executions.methods.model import InputFile
from prefect_executions.methods.model import Method as Described
from prefect_executions.runtimes.interface import (
    STREAMS,
    Capability,
    Exit,
    Plan,
    Resources,
    Run,
    RunRequest,
    RunStatus,
    Runtime,
    StreamName,
)
from prefect_executions.runtimes.registry import open_runtime
from prefect_executions.settings import Settings

_UNDEPLOY_WHEN_STOPPED = 10.0  # seconds
_SCRIPTS = {Phase.DEPLOY: DEPLOY, Phase.EXECUTE: EXECUTE, Phase.UNDEPLOY: UNDEPLOY}


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
    """What the replicas of an execution run, equal for all of them.

    Attributes:
        files: The staged inputs: path relative to the inputs of a data folder → path on this machine.
        replicas: The number of replicas. If there are several, each has its own outputs.
    """

    bundle: OpenBundle
    method: Described
    values: Mapping[str, Any]
    secrets: Mapping[str, SecretStr] = field(repr=False)
    files: Mapping[str, Path]
    mask: SecretMask
    settings: Settings
    attempt: int
    image: str | None
    resources: Resources
    replicas: int


class PhaseEvent(NamedTuple):
    """The start or the end of a phase."""

    phase: Phase
    task: str
    at: datetime
    ended: bool
    exit_code: int | None = None
    message: str | None = None


class OutputChunk(NamedTuple):
    """Output of a script, with its secrets masked."""

    number: int
    stream: StreamName
    data: bytes


class Note(NamedTuple):
    """A note for the history; not an error."""

    at: datetime
    text: str


class ReplicaFinished(NamedTuple):
    """The end of a replica's last phase; *error* is how its scripts failed."""

    number: int
    error: Exception | None


Event = PhaseEvent | OutputChunk | Note | ScriptRun | ReplicaFinished


class Replica:
    """One replica; it reports every event to *emit*, and `ReplicaFinished` as the last."""

    def __init__(self, spec: ReplicaSpec, number: int, emit: Callable[[Event], None]) -> None:
        self.number = number
        self.task = f"{spec.bundle.id}.{spec.attempt}.{number}"
        self._spec = spec
        self._emit = emit
        self._mark = uuid4().hex
        self._mount_path = ""
        self._image: str | None = None
        self._runs: list[Run] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Run all phases in a background thread."""
        background.submit(self._run, name=f"replica-{self.number}")

    def stop(self) -> None:
        """Cancel the running script; of the later scripts only Undeploy runs, for a few seconds."""
        self._stopping.set()
        background.submit(self._cancel, name=f"stop-{self.number}")

    def _run(self) -> None:
        error: Exception | None = None
        try:
            error = self._phases()
        except Exception as raised:  # noqa: BLE001 - raised in the thread that waits for the replicas
            error = raised
        self._emit(ReplicaFinished(self.number, error))

    def _phases(self) -> Exception | None:
        runtime: Runtime | None = None
        try:
            try:
                with self._phase(Phase.LAUNCH):
                    runtime = self._open()
                    scripts = self._prepare(runtime)
                    run = self._start_run(runtime, scripts, DEPLOY, EXECUTE)
            except ExecutionsError as error:
                return error
            script_error = self._follow(run)
            with self._phase(Phase.FETCH):
                self._fetch()
            self._undeploy(runtime, scripts)
            return script_error
        finally:
            self._destroy(runtime)

    def _open(self) -> Runtime:
        settings = self._spec.settings
        state = self._spec.bundle.scratch / "runs"
        return open_runtime(settings.runtime, state=state, open_network=settings.runtime_network or None)

    def _prepare(self, runtime: Runtime) -> Scripts:
        """Fill the data folder; return the scripts, with paths as they are inside the process or container."""
        spec, name = self._spec, str(self.number)
        self._mount_path = runtime.mount_path(data_folder(spec.bundle, name))
        subfolder = f"replica-{name}" if spec.replicas > 1 else ""
        prepare_data_folder(spec.bundle, name, spec.files, subfolder=subfolder, mount_path=self._mount_path)
        mounted = {str(path): f"{self._mount_path}/{INPUTS}/{relative}" for relative, path in spec.files.items()}
        values = {name: _with_mounted_paths(value, mounted) for name, value in spec.values.items()}
        return scripts_of(spec.method, values, spec.secrets)

    def _start_run(self, runtime: Runtime, scripts: Scripts, *names: str) -> Run:
        spec = self._spec
        undeploying = UNDEPLOY in names
        time_limit = spec.resources.time_limit
        if undeploying and self._stopping.is_set():
            time_limit = min(time_limit or _UNDEPLOY_WHEN_STOPPED, _UNDEPLOY_WHEN_STOPPED)
        phases = {
            phase.value: scripts.scripts[name]
            for phase, name in _SCRIPTS.items()
            if name in names and name in scripts.scripts
        }
        default_image = spec.settings.runtime_image if Capability.IMAGE in runtime.capabilities else None
        self._image = spec.image or default_image or None
        plan = self._plan(
            runtime,
            RunRequest(
                id=f"{self.task}.{Phase.UNDEPLOY}" if undeploying else self.task,
                execution_id=spec.bundle.id,
                script=merge_scripts(phases, self._mark),
                data=data_folder(spec.bundle, str(self.number)),
                environment={**scripts.environment, **self._variables()},
                secrets=dict(scripts.secrets),
                image=self._image,
                resources=spec.resources.model_copy(update={"time_limit": time_limit}),
            ),
        )
        with self._lock:
            if self._stopping.is_set() and not undeploying:
                raise ScriptError(f"Method '{spec.method.id}' was stopped before its scripts began", None)
            self._runs.append(runtime.run(plan))
            return self._runs[-1]

    def _variables(self) -> dict[str, str]:
        inputs = f"{self._mount_path}/{INPUTS}"
        return {"INPUTS": inputs, "OUTPUTS": self._mount_path, "ccptaskid": self.task}

    def _plan(self, runtime: Runtime, request: RunRequest) -> Plan:
        """Compile the plan and write it, without secrets that a value contains, into the bundle."""
        bundle, mask = self._spec.bundle, self._spec.mask
        plan = runtime.compile(request, bundle.scratch / "plans" / request.id)
        name = request.id.removeprefix(f"{bundle.id}.")
        bundle.write(f"{CODE}/{PLANS}/{name}/plan.json", mask.mask(plan.to_json()))
        bundle.write(f"{CODE}/{PLANS}/{name}/entrypoint.sh", mask.mask(request.script.encode()))
        return plan

    def _follow(self, run: Run) -> Exception | None:
        """Emit the output and the phases of *run* until it ends; return how it failed."""
        marks = MarkReader(self._mark)
        masked = {name: self._spec.mask.stream() for name in STREAMS}
        phase, ended = Phase.LAUNCH, True
        for chunk in run.logs():
            for part in marks.feed(chunk.data) if chunk.stream == "stdout" else (chunk.data,):
                if isinstance(part, Mark):
                    phase, ended = Phase(part.name), part.exit_code is not None
                    self._emit_phase(phase, ended=ended, exit_code=part.exit_code)
                else:
                    self._write(chunk.stream, masked[chunk.stream].feed(part))
        self._write("stdout", masked["stdout"].feed(marks.finish()))
        for stream in STREAMS:
            self._write(stream, masked[stream].finish())
        end = run.wait()
        if not ended:
            self._emit_phase(phase, ended=True, exit_code=end.code, message=end.why)
        self._emit(_script_run(run, end, self.task, self._spec.settings.runtime, self._image))
        return self._failure(end, phase)

    def _write(self, stream: StreamName, data: bytes) -> None:
        if data:
            self._emit(OutputChunk(self.number, stream, data))

    def _failure(self, end: Exit, phase: Phase) -> Exception | None:
        method = f"Method '{self._spec.method.id}'"
        which = f" of replica {self.number}" if self._spec.replicas > 1 else ""
        script = f"{method}: the {_SCRIPTS.get(phase, 'script')}{which}"
        if end.status is RunStatus.SUCCEEDED:
            return None
        if end.status is RunStatus.EXPIRED:
            return TimeoutError(f"{script} exceeded the time limit of {self._spec.resources.time_limit:g} s")
        if end.status is RunStatus.LOST:
            return InfrastructureError(f"{script} was lost: {end.why}")
        why = f" ({end.why})" if end.why else ""
        return ScriptError(f"{script} ended with exit code {end.code}{why}; look at its output", end.code)

    def _fetch(self) -> None:
        for note in collect_outputs(self._spec.bundle, str(self.number)):
            self._emit(Note(now(), note))

    def _undeploy(self, runtime: Runtime, scripts: Scripts) -> None:
        """Run the undeploy script, if there is one; its failure does not change the status of the execution."""
        if UNDEPLOY not in scripts.scripts:
            return
        try:
            self._follow(self._start_run(runtime, scripts, UNDEPLOY))
        except ExecutionsError as error:
            self._emit(Note(now(), f"the undeploy-script of {self.task} could not be run: {error}"))

    def _destroy(self, runtime: Runtime | None) -> None:
        with self._phase(Phase.DESTROY):
            for run in self._runs:
                run.discard()
            self._fetch()  # the outputs of undeploy
            remove_data_folder(self._spec.bundle, str(self.number))
            if runtime is not None:
                runtime.close()

    def _cancel(self) -> None:
        with self._lock:
            run = self._runs[-1] if self._runs else None
        if run is not None:
            with suppress(ExecutionsError, TimeoutError):  # `discard` tries again
                run.cancel()

    @contextmanager
    def _phase(self, phase: Phase) -> Iterator[None]:
        """Emit start and end of a phase without a script; its exit code is 0, or 1 if the block fails."""
        self._emit_phase(phase, ended=False)
        try:
            yield
        except Exception as error:
            self._emit_phase(phase, ended=True, exit_code=1, message=str(error))
            raise
        self._emit_phase(phase, ended=True, exit_code=0)

    def _emit_phase(
        self, phase: Phase, *, ended: bool, exit_code: int | None = None, message: str | None = None
    ) -> None:
        self._emit(PhaseEvent(phase, self.task, now(), ended, exit_code, message))


def _with_mounted_paths(value: Any, mounted: Mapping[str, str]) -> Any:
    """Return *value* with the path of each staged file as it is inside the process or container."""
    if isinstance(value, InputFile):
        return mounted[str(value)]
    return [_with_mounted_paths(part, mounted) for part in value] if isinstance(value, list) else value


def _script_run(run: Run, end: Exit, task: str, runtime: str, image_name: str | None) -> ScriptRun:
    seen = run.seen()
    return ScriptRun(
        id=run.id,
        task=task,
        runtime=runtime,
        process=seen.process,
        job=seen.job,
        container=seen.container,
        node=seen.node,
        image=seen.image,
        image_name=image_name,
        image_digest=seen.image_digest,
        started=end.started,
        ended=end.ended,
        exit_code=end.code,
        why=end.why,
        cpu_seconds=end.cpu_seconds,
        peak_memory=end.peak_memory,
    )
