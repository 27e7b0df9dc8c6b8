"""What every teller of one execution must say alike: the documents, PROV and the crate."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from prefect_executions.executions.record import ExecutionRecord, ScriptRun, value_digest
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.lifecycle.status import Phase

_SCRIPTED = frozenset({Phase.DEPLOY, Phase.EXECUTE, Phase.UNDEPLOY})


class ScriptPhase(NamedTuple):
    """A phase that the scripts of a descriptor Method went through; what nobody saw is absent.

    `number` counts them in the order in which they began. `run` is where its script
    ran; a phase without a script has none.
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
    """Return the phases that the history of *record* tells, in the order in which they began."""
    runs = {run.id: run for run in record.instance.runs or ()}
    found: list[ScriptPhase] = []
    going: dict[tuple[str, Phase], int] = {}
    for entry in record.job_status.history:
        if entry.phase is None:
            continue
        key = task, phase = entry.task or "", entry.phase
        begins = entry.kind is EntryKind.PHASE
        if begins or key not in going:
            going[key] = len(found)
            started = entry.time if begins else None
            found.append(ScriptPhase(going[key], phase, task, started, run=_run_of(task, phase, runs)))
        if not begins:
            number = going.pop(key)
            told = found[number]
            found[number] = told._replace(ended=entry.time, exit_code=entry.exit_code, message=entry.message)
    return tuple(found)


def _run_of(task: str, phase: Phase, runs: dict[str, ScriptRun]) -> ScriptRun | None:
    # Deploy and Execute share one run, which has the task's own id.
    return runs.get(f"{task}.{phase}" if phase is Phase.UNDEPLOY else task) if phase in _SCRIPTED else None


class Image(NamedTuple):
    """The image of a container that scripts ran in: registry and name as it was asked for, its own id, its digest.

    `sha256` is the digest by which a registry knows it, in hex.
    """

    registry: str | None = None
    name: str | None = None
    id: str | None = None
    sha256: str | None = None


def image_of(run: ScriptRun | None) -> Image | None:
    """Return the image that *run* was seen in; None where it ran in no container, or nobody saw the image."""
    if run is None or not (run.image or run.image_digest):
        return None
    return named_image(run.image_name, run.image, run.image_digest)


def named_image(name: str | None, image_id: str | None, digest: str | None) -> Image:
    """Return an image by its *name*, with the *digest* ``[repository@]sha256:…``.

    The grammar of image names (distribution/reference): a first part with a dot or a
    port, or localhost, is the registry; docker.io is meant where there is none.
    """
    first, _, rest = (name or "").partition("/")
    named = bool(rest) and ("." in first or ":" in first or first == "localhost")
    return Image(
        registry=first if named else "docker.io" if name else None,
        name=rest if named else name or None,
        id=image_id,
        sha256=digest.rpartition("sha256:")[2] if digest else None,
    )


class StepSummary(NamedTuple):
    """What every teller of one execution must say alike of one of its steps."""

    id: str
    name: str
    state: str
    started: datetime | None
    finished: datetime | None


class PhaseSummary(NamedTuple):
    """What every teller of one execution must say alike of one phase of its scripts."""

    number: int
    phase: str
    task: str
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    image: Image | None


class RecordSummary(NamedTuple):
    """What every teller of one execution must say alike; `verify` compares them.

    `inputs` are (input name, SHA-256) of staged files and (input name, digest of
    the canonical JSON value) of the others; `outputs` are (path, SHA-256).
    Times are cut to milliseconds, because a crate's validator takes no more.
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
    """What PROV or a crate tells: its account, and (path, SHA-256) of files of the bundle, to be held against them."""

    account: RecordSummary
    files: frozenset[tuple[str, str]]


def summary_of(record: ExecutionRecord) -> RecordSummary:
    """Return what the JSON documents of *record* tell, to be compared with PROV and crate."""
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
    for one in phases_of(record):
        yield PhaseSummary(
            number=one.number,
            phase=one.phase.value,
            task=one.task,
            started=in_milliseconds(one.started),
            ended=in_milliseconds(one.ended),
            exit_code=one.exit_code,
            image=image_of(one.run),
        )


def in_milliseconds(time: datetime | None) -> datetime | None:
    """Return *time* cut (not rounded) to milliseconds."""
    return time and time.replace(microsecond=time.microsecond // 1000 * 1000)
