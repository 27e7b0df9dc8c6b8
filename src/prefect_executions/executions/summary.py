"""The summary of a record: the facts that the JSON documents, PROV and the crate must agree on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from prefect_executions.executions.record import ExecutionRecord, Raised, ScriptRun, value_digest
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.lifecycle.status import Phase

_SCRIPTED = frozenset({Phase.DEPLOY, Phase.EXECUTE, Phase.UNDEPLOY})


class ScriptPhase(NamedTuple):
    """A phase of a descriptor Method's scripts; unobserved facts are absent.

    `number` counts the phases in the order of their starts. `run` is the run of its
    script; None for a phase without a script.
    """

    number: int
    phase: Phase
    task: str
    started: datetime | None = None
    ended: datetime | None = None
    exit_code: int | None = None
    message: str | None = None
    run: ScriptRun | None = None


def phases_of(record: ExecutionRecord) -> tuple[ScriptPhase, ...]:
    """Return the phases in the history of *record*, in the order of their starts."""
    runs = {run.id: run for run in record.instance.runs or ()}
    phases: list[ScriptPhase] = []
    open_phases: dict[tuple[str, Phase], int] = {}
    for entry in record.job_status.history:
        if entry.phase is None:
            continue
        key = task, phase = entry.task or "", entry.phase
        begins = entry.kind is EntryKind.PHASE
        if begins or key not in open_phases:
            open_phases[key] = len(phases)
            started = entry.time if begins else None
            phases.append(ScriptPhase(open_phases[key], phase, task, started, run=_run_of(task, phase, runs)))
        if not begins:
            number = open_phases.pop(key)
            phases[number] = phases[number]._replace(ended=entry.time, exit_code=entry.exit_code, message=entry.message)
    return tuple(phases)


def _run_of(task: str, phase: Phase, runs: dict[str, ScriptRun]) -> ScriptRun | None:
    # Deploy and Execute share one run, whose id is the task's.
    return runs.get(f"{task}.{phase}" if phase is Phase.UNDEPLOY else task) if phase in _SCRIPTED else None


class Image(NamedTuple):
    """A container image: its requested registry and name, its image id, and its digest in the registry in hex."""

    registry: str | None = None
    name: str | None = None
    id: str | None = None
    sha256: str | None = None


def image_of(run: ScriptRun | None) -> Image | None:
    """Return the image that *run* ran in; None if there was no container or the image was not observed."""
    if run is None or not (run.image or run.image_digest):
        return None
    return named_image(run.image_name, run.image, run.image_digest)


def named_image(name: str | None, image_id: str | None, digest: str | None) -> Image:
    """Return the image with this *name* and *digest* (``[repository@]sha256:…``).

    By the grammar of image names (distribution/reference), a first part with a dot or a
    port, or ``localhost``, is the registry. The default registry is docker.io.
    """
    first, _, rest = (name or "").partition("/")
    has_registry = bool(rest) and ("." in first or ":" in first or first == "localhost")
    return Image(
        registry=first if has_registry else "docker.io" if name else None,
        name=rest if has_registry else name or None,
        id=image_id,
        sha256=digest.rpartition("sha256:")[2] if digest else None,
    )


class StepSummary(NamedTuple):
    """The summary of one step."""

    id: str
    name: str
    state: str
    started: datetime | None
    finished: datetime | None


class PhaseSummary(NamedTuple):
    """The summary of one phase of scripts."""

    number: int
    phase: str
    task: str
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    image: Image | None


class RecordSummary(NamedTuple):
    """The facts that the JSON documents, PROV and the crate must agree on; `verify` compares them.

    `inputs` are (input name, SHA-256) for staged files and (input name, digest of
    the canonical JSON value) for other inputs; `outputs` are (path, SHA-256).
    Times are truncated to milliseconds, the limit of the crate's validator.
    """

    execution_id: str
    method: str
    status: str
    started: datetime | None
    finished: datetime | None
    inputs: frozenset[tuple[str, str]]
    outputs: frozenset[tuple[str, str]]
    steps: frozenset[StepSummary] = frozenset()
    phases: frozenset[PhaseSummary] = frozenset()


class ReadSummary(NamedTuple):
    """The summary in PROV or in a crate, and the (path, SHA-256) that it gives for files of the bundle, in order."""

    summary: RecordSummary
    files: tuple[tuple[str, str], ...]


def summary_of(record: ExecutionRecord) -> RecordSummary:
    """Return the summary of the JSON documents of *record*."""
    staged = {(file.input, file.sha256) for file in record.request.files}
    files = {name for name, _ in staged}
    values = {(name, value_digest(value)) for name, value in record.request.values.items() if name not in files}
    return RecordSummary(
        execution_id=record.id,
        method=f"{record.method.id} {record.method.version}",
        status=record.status.value,
        started=in_milliseconds(record.started),
        finished=in_milliseconds(record.finished),
        inputs=frozenset(staged | values),
        outputs=frozenset((output.path, output.sha256) for output in record.job_status.outputs),
        steps=frozenset(
            StepSummary(
                id=str(step.id),
                name=step.name,
                state=step.state,
                started=in_milliseconds(step.started),
                finished=in_milliseconds(step.finished),
            )
            for step in record.job_status.steps or ()
        ),
        phases=frozenset(_phases(record)),
    )


def _phases(record: ExecutionRecord) -> Iterator[PhaseSummary]:
    for phase in phases_of(record):
        yield PhaseSummary(
            number=phase.number,
            phase=phase.phase.value,
            task=phase.task,
            started=in_milliseconds(phase.started),
            ended=in_milliseconds(phase.ended),
            exit_code=phase.exit_code,
            image=image_of(phase.run),
        )


def in_milliseconds(time: datetime | None) -> datetime | None:
    """Return *time* truncated (not rounded) to milliseconds."""
    return time and time.replace(microsecond=time.microsecond // 1000 * 1000)


def error_text(error: Raised) -> str:
    """Return the type of *error*, and its message if it has one: ``SystemExit`` has none."""
    return f"{error.type}: {error.message}" if error.message else error.type
