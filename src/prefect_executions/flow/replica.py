"""One replica of a descriptor Method: its data folder, its process or container, and its phases, in a thread.

Deploy and Execute share one process or container, and Undeploy has one of its
own, because what ends the first (its time limit, somebody who cancels it) ends
everything in it. All three see the same data folder.
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

from prefect_executions.bundles.data_folder import (
    INPUTS,
    collect_outputs,
    data_folder,
    prepare_data_folder,
    remove_data_folder,
)
from prefect_executions.bundles.layout import CODE
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.descriptors.scripts import (
    DEPLOY,
    EXECUTE,
    UNDEPLOY,
    Mark,
    MarkReader,
    Scripts,
    merged,
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
from prefect_executions.workbench.recovery import PLANS

_UNDEPLOY_WHEN_STOPPED = 10.0  # seconds
_SCRIPTS = {Phase.DEPLOY: DEPLOY, Phase.EXECUTE: EXECUTE, Phase.UNDEPLOY: UNDEPLOY}


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
    """What all replicas of an execution are to do.

    Attributes:
        files: Where each staged input lies, by the path that it has among the inputs of a data folder.
        replicas: How many there are. Each has outputs of its own when there are several.
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
    """A phase begins, or has ended."""

    phase: Phase
    task: str
    at: datetime
    ended: bool
    exit_code: int | None = None
    message: str | None = None


class OutputChunk(NamedTuple):
    """Something that a script has written, with its secrets masked."""

    number: int
    stream: StreamName
    data: bytes


class Note(NamedTuple):
    """Something worth knowing that is no error."""

    at: datetime
    text: str


class ReplicaFinished(NamedTuple):
    """A replica is through all its phases; *error* is how its scripts failed."""

    number: int
    error: Exception | None


Event = PhaseEvent | OutputChunk | Note | ScriptRun | ReplicaFinished


class Replica(threading.Thread):
    """One replica; it tells everything by *tell*, and `Done` as the last."""

    def __init__(self, order: ReplicaSpec, number: int, tell: Callable[[Event], None]) -> None:
        super().__init__(name=f"replica-{number}", daemon=True)
        self.number = number
        self.task = f"{order.bundle.id}.{order.attempt}.{number}"
        self._order = order
        self._tell = tell
        self._mark = uuid4().hex
        self._seen = ""
        self._image: str | None = None
        self._runs: list[Run] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End what it runs now; of what would follow only Undeploy is run, and is given a few seconds."""
        self._stopping.set()
        threading.Thread(target=self._cancel, name=f"stop-{self.number}", daemon=True).start()

    def run(self) -> None:
        """Go through all phases."""
        error: Exception | None = None
        try:
            error = self._phases()
        except Exception as raised:  # noqa: BLE001 - it is raised where the replicas are waited for
            error = raised
        self._tell(ReplicaFinished(self.number, error))

    def _phases(self) -> Exception | None:
        runtime: Runtime | None = None
        try:
            try:
                with self._phase(Phase.LAUNCH):
                    runtime = self._open()
                    scripts = self._laid_out(runtime)
                    begun = self._begin(runtime, scripts, DEPLOY, EXECUTE)
            except ExecutionsError as error:
                return error
            error_of_scripts = self._follow(begun)
            with self._phase(Phase.FETCH):
                self._fetch()
            self._undeploy(runtime, scripts)
            return error_of_scripts
        finally:
            self._destroy(runtime)

    def _open(self) -> Runtime:
        settings = self._order.settings
        state = self._order.bundle.scratch / "runs"
        return open_runtime(settings.runtime, state=state, open_network=settings.runtime_network or None)

    def _laid_out(self, runtime: Runtime) -> Scripts:
        """Make the data folder, and return the scripts as they are run over it."""
        order, name = self._order, str(self.number)
        self._seen = runtime.mount_path(data_folder(order.bundle, name))
        to = f"replica-{name}" if order.replicas > 1 else ""
        prepare_data_folder(order.bundle, name, order.files, subfolder=to, mount_path=self._seen)
        there = {str(path): f"{self._seen}/{INPUTS}/{inside}" for inside, path in order.files.items()}
        values = {name: _as_seen(value, there) for name, value in order.values.items()}
        return scripts_of(order.method, values, order.secrets)

    def _begin(self, runtime: Runtime, scripts: Scripts, *names: str) -> Run:
        order = self._order
        undeploying = UNDEPLOY in names
        limit = order.resources.time_limit
        if undeploying and self._stopping.is_set():
            limit = min(limit or _UNDEPLOY_WHEN_STOPPED, _UNDEPLOY_WHEN_STOPPED)
        several = {
            phase.value: scripts.scripts[name]
            for phase, name in _SCRIPTS.items()
            if name in names and name in scripts.scripts
        }
        self._image = (
            order.image or (order.settings.runtime_image if Capability.IMAGE in runtime.capabilities else None) or None
        )
        plan = self._plan(
            runtime,
            RunRequest(
                id=f"{self.task}.{Phase.UNDEPLOY}" if undeploying else self.task,
                execution_id=order.bundle.id,
                script=merged(several, self._mark),
                data=data_folder(order.bundle, str(self.number)),
                environment={**scripts.environment, **self._further()},
                secrets=dict(scripts.secrets),
                image=self._image,
                resources=order.resources.model_copy(update={"time_limit": limit}),
            ),
        )
        with self._lock:
            if self._stopping.is_set() and not undeploying:
                raise ScriptError(f"Method '{order.method.id}' was stopped before its scripts began", None)
            self._runs.append(runtime.run(plan))
            return self._runs[-1]

    def _further(self) -> dict[str, str]:
        return {"INPUTS": f"{self._seen}/{INPUTS}", "OUTPUTS": self._seen, "ccptaskid": self.task}

    def _plan(self, runtime: Runtime, request: RunRequest) -> Plan:
        """Return the plan, which the bundle keeps."""
        bundle = self._order.bundle
        plan = runtime.compile(request, bundle.scratch / "plans" / request.id)
        name = request.id.removeprefix(f"{bundle.id}.")
        bundle.write(f"{CODE}/{PLANS}/{name}/plan.json", plan.to_json())
        bundle.write(f"{CODE}/{PLANS}/{name}/entrypoint.sh", request.script.encode())
        return plan

    def _follow(self, run: Run) -> Exception | None:
        """Tell what *run* writes and which phases it goes through; return how it failed."""
        marks = MarkReader(self._mark)
        masked = {name: self._order.mask.stream() for name in STREAMS}
        phase, ended = Phase.LAUNCH, True
        for piece in run.logs():
            for part in marks.feed(piece.data) if piece.stream == "stdout" else (piece.data,):
                if isinstance(part, Mark):
                    phase, ended = Phase(part.name), part.exit_code is not None
                    self._moment(phase, ended=ended, exit_code=part.exit_code)
                else:
                    self._write(piece.stream, masked[piece.stream].feed(part))
        self._write("stdout", masked["stdout"].feed(marks.finish()))
        for stream in STREAMS:
            self._write(stream, masked[stream].finish())
        end = run.wait()
        if not ended:
            self._moment(phase, ended=True, exit_code=end.code, message=end.why)
        self._tell(_told(run, end, self.task, self._order.settings.runtime, self._image))
        return self._failure(end, phase)

    def _write(self, stream: StreamName, data: bytes) -> None:
        if data:
            self._tell(OutputChunk(self.number, stream, data))

    def _failure(self, end: Exit, phase: Phase) -> Exception | None:
        method = f"Method '{self._order.method.id}'"
        which = f" of replica {self.number}" if self._order.replicas > 1 else ""
        script = f"{method}: the {_SCRIPTS.get(phase, 'script')}{which}"
        if end.status is RunStatus.SUCCEEDED:
            return None
        if end.status is RunStatus.EXPIRED:
            return TimeoutError(f"{script} ran into the time limit of {self._order.resources.time_limit:g} s")
        if end.status is RunStatus.LOST:
            return InfrastructureError(f"{script} was lost: {end.why}")
        why = f" ({end.why})" if end.why else ""
        return ScriptError(f"{script} ended with exit code {end.code}{why}; look at what it wrote", end.code)

    def _fetch(self) -> None:
        for note in collect_outputs(self._order.bundle, str(self.number)):
            self._tell(Note(now(), note))

    def _undeploy(self, runtime: Runtime, scripts: Scripts) -> None:
        """Run the undeploy script, if there is one; how it ends changes nothing of how the execution ends."""
        if UNDEPLOY not in scripts.scripts:
            return
        try:
            self._follow(self._begin(runtime, scripts, UNDEPLOY))
        except ExecutionsError as error:
            self._tell(Note(now(), f"the undeploy-script of {self.task} could not be run: {error}"))

    def _destroy(self, runtime: Runtime | None) -> None:
        with self._phase(Phase.DESTROY):
            for run in self._runs:
                run.discard()
            self._fetch()  # what undeploy has left
            remove_data_folder(self._order.bundle, str(self.number))
            if runtime is not None:
                runtime.close()

    def _cancel(self) -> None:
        with self._lock:
            run = self._runs[-1] if self._runs else None
        if run is not None:
            with suppress(ExecutionsError, TimeoutError):  # it is tried again when it is discarded
                run.cancel()

    @contextmanager
    def _phase(self, phase: Phase) -> Iterator[None]:
        """Tell a phase that has no script: its exit code is 0, or 1 where it failed."""
        self._moment(phase, ended=False)
        try:
            yield
        except Exception as error:
            self._moment(phase, ended=True, exit_code=1, message=str(error))
            raise
        self._moment(phase, ended=True, exit_code=0)

    def _moment(self, phase: Phase, *, ended: bool, exit_code: int | None = None, message: str | None = None) -> None:
        self._tell(PhaseEvent(phase, self.task, now(), ended, exit_code, message))


def _as_seen(value: Any, there: Mapping[str, str]) -> Any:
    """Return *value* with the path of each staged file as the scripts see it."""
    if isinstance(value, InputFile):
        return there[str(value)]
    return [_as_seen(part, there) for part in value] if isinstance(value, list) else value


def _told(run: Run, end: Exit, task: str, runtime: str, image_name: str | None) -> ScriptRun:
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
