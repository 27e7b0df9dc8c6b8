"""Records of executions for tests: sensible values, any of which a test may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from mimetypes import guess_type
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect_executions import events
from prefect_executions.capture.code import git_object
from prefect_executions.comparison.verdict import Agreement, Grade, OutputVerdict, Verdict
from prefect_executions.events import Event
from prefect_executions.executions.record import (
    Agent,
    BundleFile,
    Deployment,
    ExecuteRequest,
    ExecutionRecord,
    Gpu,
    Infrastructure,
    Instance,
    Metric,
    Metrics,
    Process,
    Python,
    Raised,
    Relative,
    ScriptRun,
    StagedInput,
    Usage,
)
from prefect_executions.lifecycle.history import (
    EntryKind,
    JobStatus,
    OutputFile,
    PrefectState,
    Step,
    add_entry,
    advance,
    new_job_status,
)
from prefect_executions.lifecycle.status import Observer, Phase, Reason, Status
from prefect_executions.methods.model import (
    CodeIdentity,
    InputDescription,
    Method,
    OutputDescription,
    Repository,
    SourceFile,
)
from prefect_executions.settings import ArchiveLevel

EXECUTION_ID = "0b1e5a52-6f0c-4f2e-9a41-3d6d5d3f2e10"
NOON = datetime(2026, 9, 22, 12, 0, 0, 123456, UTC)

SOURCE = b"def segment(picture, threshold=0.3):\n    ...\n"
DIFF = b"--- a/flows/coins.py\n+++ b/flows/coins.py\n"
PICTURE = b"\x89PNG a picture of coins"
OUTPUTS: Mapping[str, bytes] = {
    "outputs/regions.csv": b"label,area\n1,2604\n",
    "outputs/maps/labels.tif": b"II*\x00 labels",
    "outputs/stdout.log": b"24 regions\n",
    "outputs/stderr.log": b"",
}


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def an_output(path: str, content: bytes = b"") -> OutputFile:
    return OutputFile(path=path, sha256=digest(content), size=len(content), media_type=media_type(path))


def a_staged_input(name: str = "picture", content: bytes = PICTURE, /, **changes: Any) -> StagedInput:
    members: dict[str, Any] = {
        "input": name,
        "name": f"{name}.png",
        "path": f"inputs/{name}.png",
        "origin": f"s3://survey/{name}.png",
        "sha256": digest(content),
        "size": len(content),
        "media_type": "image/png",
        "etag": '"5d41402abc4b2a76b9719d911017c592"',
    }
    return StagedInput(**members | changes)


def media_type(path: str) -> str:
    return "text/plain" if path.endswith(".log") else guess_type(path)[0] or "application/octet-stream"


def a_method(**changes: Any) -> Method:
    members: dict[str, Any] = {
        "id": "segment-coins",
        "version": "1.2.0",
        "title": "Segment coins",
        "description": "Find the coins in a photograph.",
        "keywords": ("segmentation",),
        "type": "Analysis",
        "inputs": {
            "picture": InputDescription(json_schema={"type": "string", "format": "uri-reference"}),
            "threshold": InputDescription(json_schema={"type": "number", "default": 0.3}, min_occurs=0),
        },
        "outputs": {"regions.csv": OutputDescription(json_schema={"type": "string"})},
        "code": a_code_identity(),
    }
    return Method(**members | changes)


def a_code_identity(source: bytes = SOURCE) -> CodeIdentity:
    """Return the identity of code that is one file with the content *source*."""
    path = "code/flows/coins.py"
    return CodeIdentity(
        entrypoint="flows/coins.py:segment",
        sha256=digest(f"{digest(source)}  {path}\n".encode()),
        repository=Repository(
            remote="https://example.org/coins.git",
            commit="4b825dc642cb6eb9a060e54bf8d69288fbee4904",
            branch="main",
            author="Ada Lovelace",
            subject="Count the coins",
            path="flows/coins.py",
            dirty=False,
        ),
        files=(SourceFile(path=path, sha256=digest(source), git_object=git_object(source), module="coins"),),
    )


def a_request(**changes: Any) -> ExecuteRequest:
    members: dict[str, Any] = {
        "values": {"picture": "s3://survey/picture.png", "threshold": 0.3, "labels": ["a", "ä"]},
        "execution_id": EXECUTION_ID,
        "method_id": "segment-coins",
        "method_version": "1.2.0",
        "parameters": {"picture": "s3://survey/picture.png", "labels": ["a", "ä"]},
        "files": (a_staged_input(),),
        "relatives": (Relative(execution_id="b5bb9d80-14a0-4f9b-a1c7-8f6f1d2c3e4f", relation="rerun-of"),),
        "flow_run_name": "brave-otter",
        "deployment": Deployment(id=UUID("6f1c1a8e-3b5d-4c7e-9d2a-0a1b2c3d4e5f"), name="coins/nightly"),
        "tags": ("survey",),
    }
    return ExecuteRequest(**members | changes)


def a_verdict(**changes: Any) -> Verdict:
    drift = ("column area differs in 3 of 92 rows, largest relative difference 2e-07",)
    members: dict[str, Any] = {
        "replay_of": "b5bb9d80-14a0-4f9b-a1c7-8f6f1d2c3e4f",
        "manifest_sha256": digest(b"the manifest"),
        "grade": Grade.REPEAT,
        "environment": ("numpy was 2.3.0 and is 2.3.1",),
        "outputs": (
            OutputVerdict(path="outputs/maps/labels.tif", agreement=Agreement.SAME, by="bytes"),
            OutputVerdict(path="outputs/regions.csv", agreement=Agreement.DIFFERS, by="table", words=drift),
            OutputVerdict(path="outputs/stderr.log", agreement=Agreement.SAME, by="bytes"),
            OutputVerdict(path="outputs/stdout.log", agreement=Agreement.SAME, by="bytes"),
        ),
    }
    return Verdict(**members | changes)


def an_infrastructure(**changes: Any) -> Infrastructure:
    members: dict[str, Any] = {
        "type": "process",
        "work_pool": "default",
        "work_queue": "default",
        "worker": "worker-1",
        "identifier": "vm-7:4711",
        "prefect_version": "3.8.8",
    }
    return Infrastructure(**members | changes)


def an_instance(**changes: Any) -> Instance:
    members: dict[str, Any] = {
        "hostname": "vm-7",
        "pid": 4711,
        "user": "alice",
        "os": "Linux",
        "kernel": "6.1.0",
        "architecture": "x86_64",
        "cpu_count": 2,
        "memory": 8 * 1024**3,
        "python": Python(version="3.11.9", implementation="CPython"),
        "packages": {"numpy": "2.3.1", "prefect": "3.8.8"},
        "environment": {"TZ": "UTC"},
        "usage": Usage(wall_seconds=4.5, cpu_seconds=4.25, peak_memory=123_456_789, exit_code=0),
    }
    return Instance(**members | changes)


def an_agent(**changes: Any) -> Agent:
    members: dict[str, Any] = {
        "verified": True,
        "source": "token",
        "claims": {"iss": "https://login.example.org", "sub": "alice@example.org", "name": "Alice"},
        "token_sha256": digest(b"a token"),
    }
    return Agent(**members | changes)


def a_raised() -> Raised:
    return Raised(
        type="ValueError",
        message="no coins in this picture",
        traceback="Traceback (most recent call last):\n  …\nValueError: no coins in this picture\n",
    )


def a_job_status(
    end: Status = Status.COMPLETED,
    *,
    execution_id: str = EXECUTION_ID,
    method_id: str = "segment-coins",
    started: bool = True,
    reason: Reason | None = None,
    message: str | None = None,
    outputs: Sequence[OutputFile] | None = None,
    begins: datetime = NOON,
) -> JobStatus:
    """Return a job status on the legal way to *end*; one that never *started* has no outputs of its own."""

    def second(number: int) -> datetime:
        return begins + timedelta(seconds=number)

    job_status = new_job_status(
        execution_id,
        method_id,
        status=Status.CREATED,
        at=second(0),
        observer=Observer.PREFECT,
        prefect_state=PrefectState(type="SCHEDULED", name="Scheduled"),
    )
    job_status = advance(job_status, Status.SCHEDULED, second(1), observer=Observer.PREFECT)
    if started:
        job_status = advance(job_status, Status.STARTED, second(2), observer=Observer.HOOK)
        job_status = advance(job_status, Status.EXECUTING, second(3), observer=Observer.HOOK)
        job_status = add_entry(
            job_status, EntryKind.PROGRESS, second(4), observer=Observer.HOOK, progress=50, message="half way"
        )
    if end.terminal:
        job_status = advance(job_status, end, second(8), observer=Observer.HOOK, reason=reason, message=message)
    if outputs is None:
        outputs = tuple(an_output(path, content) for path, content in OUTPUTS.items()) if started else ()
    return job_status.model_copy(update={"outputs": tuple(outputs)})


def some_events() -> list[Event]:
    """Return at least one event of every name, each with all that it may tell."""
    ends = [
        a_job_status(Status.COMPLETED),
        a_job_status(Status.FAILED, reason=Reason.ERROR, message="ValueError: no coins"),
        a_job_status(Status.CANCELLED, message="Cancelled"),
    ]
    last = ends[1].history[-1].model_copy(update={"observer": Observer.SETTLE})
    settled = ends[1].model_copy(update={"history": (*ends[1].history[:-1], last)})
    return [
        *(event for job_status in (*ends, settled) for event in events.status_events(job_status, NOON)),
        events.archived_event(ends[0], digest(b"the manifest"), NOON),
        events.archive_failed_event(ends[0], "the bucket is gone", NOON),
        events.progress_event(EXECUTION_ID, "segment-coins", 50.0, "half way", NOON),
    ]


def some_steps() -> tuple[Step, ...]:
    """Return steps of every kind: one that ended well, one that failed, a call of a flow, one that never began."""

    def step(number: int, name: str, state: str, **changes: Any) -> Step:
        known = {"id": UUID(int=number), "name": name, "state": state, "state_name": state.title()}
        return Step(**known | changes)

    began, ended = NOON + timedelta(seconds=4), NOON + timedelta(seconds=5, milliseconds=250)
    return (
        step(1, "smooth-3f1", "COMPLETED", started=began, finished=ended),
        step(2, "label <&> \x01 ä", "FAILED", started=began, finished=ended),
        step(3, "measure-0", "RUNNING", started=ended, flow_run_id=UUID(int=9)),
        step(4, "never", "PENDING"),
    )


def with_phases(record: ExecutionRecord, exit_code: int = 0) -> ExecutionRecord:
    """Return *record* with the phases of two replicas: one in two images, with *exit_code* of Execute; one was lost."""
    job_status, tasks = record.job_status, [f"{record.id}.1.{number}" for number in (1, 2)]
    history = list(job_status.history)
    place = next(at for at, entry in enumerate(history) if entry.kind is EntryKind.PROGRESS)

    def entry(kind: EntryKind, phase: Phase, task: str = tasks[0], **changes: Any) -> None:
        nonlocal place
        place += 1
        like = history[place - 1].model_copy(update={"progress": None, "message": None, "exit_code": None})
        history.insert(place, like.model_copy(update={"kind": kind, "phase": phase, "task": task, **changes}))

    entry(EntryKind.PHASE, Phase.EXECUTE, tasks[1])
    for phase in (Phase.LAUNCH, Phase.EXECUTE, Phase.FETCH, Phase.UNDEPLOY):
        entry(EntryKind.PHASE, phase)
        code = exit_code if phase is Phase.EXECUTE else 0
        why = "the kernel <killed> \x01 it" if code else None
        entry(EntryKind.PHASE_ENDED, phase, exit_code=code, message=why)
    entry(EntryKind.PHASE_ENDED, Phase.LAUNCH, tasks[1], message="nobody saw it begin")
    image = {"image": f"sha256:{'b' * 64}", "image_name": "registry.example.org/science/awk:1"}
    runs = (
        ScriptRun(id=tasks[0], task=tasks[0], runtime="docker", container="c" * 64, **image),
        ScriptRun(
            id=f"{tasks[0]}.undeploy",
            task=tasks[0],
            runtime="docker",
            image=f"sha256:{'d' * 64}",
            image_name="awk",
            image_digest=f"library/awk@sha256:{'e' * 64}",
        ),
        ScriptRun(id=tasks[1], task=tasks[1], runtime="process"),
    )
    return replace(
        record,
        job_status=job_status.model_copy(update={"history": tuple(history)}),
        instance=record.instance.model_copy(update={"runs": runs}),
    )


def some_metrics() -> Metrics:
    return Metrics(
        params={"footprint": 3},
        metrics=(
            Metric(name="regions", value=24, time=NOON + timedelta(seconds=5)),
            Metric(name="loss", value=0.5, step=1, time=NOON + timedelta(seconds=5)),
            Metric(name="loss", value=0.25, step=2, time=NOON + timedelta(seconds=6)),
        ),
    )


def a_record(**changes: Any) -> ExecutionRecord:
    """Return a COMPLETED execution with one staged input, two values and four outputs; *changes* are its members."""
    members: dict[str, Any] = {
        "method": a_method(),
        "request": a_request(),
        "infrastructure": an_infrastructure(),
        "instance": an_instance(),
        "job_status": a_job_status(),
        "agent": an_agent(),
        "metrics": some_metrics(),
    }
    return ExecutionRecord(**members | changes)


def a_failed_record(reason: Reason = Reason.ERROR, **changes: Any) -> ExecutionRecord:
    """Return an execution whose code raised, with what it had written until then."""
    members: dict[str, Any] = {
        "job_status": a_job_status(Status.FAILED, reason=reason, message="ValueError: no coins in this picture"),
        "instance": an_instance(usage=Usage(wall_seconds=4.5, exit_code=1, exception=a_raised())),
    }
    return a_record(**members | changes)


def a_cancelled_record(**changes: Any) -> ExecutionRecord:
    """Return an execution that somebody stopped while it ran."""
    job_status = a_job_status(Status.CANCELLED, message="stopped by alice").model_copy(update={"partial": True})
    return a_record(**{"job_status": job_status} | changes)


def a_never_started_record(
    end: Status = Status.CANCELLED, reason: Reason | None = None, **changes: Any
) -> ExecutionRecord:
    """Return an execution that ended before any worker took it: no start, no instance, no files."""
    members: dict[str, Any] = {
        "job_status": a_job_status(end, started=False, reason=reason),
        "request": a_request(files=()),
        "infrastructure": Infrastructure(type="process", work_pool="default"),
        "instance": Instance(),
        "metrics": None,
    }
    return a_record(**members | changes)


def a_full_record() -> ExecutionRecord:
    """Return a record with every part that a record may have."""
    repository = a_method().code.repository.model_copy(
        update={
            "dirty": True,
            "changed": ("flows/coins.py",),
            "diff_sha256": digest(DIFF),
            "diff_kept": True,
        }
    )
    code = a_method().code.model_copy(update={"repository": repository, "package": "coins==1.2", "image": "coins:1.2"})
    record = with_phases(
        a_failed_record(Reason.ERROR, method=a_method(code=code, time_limit=60.0, archive=ArchiveLevel.FULL)),
        exit_code=1,
    )
    instance = record.instance
    return replace(
        record,
        agent=an_agent(claims=an_agent().claims | {"aud": "executions"}),
        request=a_request(
            relatives=(
                Relative(execution_id=a_verdict().replay_of, relation="rerun-of"),
                Relative(execution_id="parent-1", relation="parent"),
            ),
            created_by={"type": "schedule", "id": "1", "name": "nightly"},
        ),
        job_status=record.job_status.model_copy(update={"steps": some_steps(), "partial": True}),
        infrastructure=an_infrastructure(
            image="registry.example.org/coins:1.2",
            image_digest=f"sha256:{'a' * 64}",
            image_id=f"sha256:{'c' * 64}",
            worker_id="w-1",
            prefect_api="https://prefect.example.org/api",
            job_variables={"cpu": "2"},
        ),
        instance=an_instance(
            usage=instance.usage.model_copy(update={"cpu_seconds": 4.25, "peak_memory": 123_456}),
            runs=instance.runs,
            process=Process(host="vm-7", boot="b", pids="p", pid=4711, started="1", layout="l"),
            own_process=True,
            earlier_processes=(Process(pid=4710),),
            working_directory="/home/alice",
            container_id="c" * 12,
            pod="pod-1",
            node="node-1",
            cpu_model="Xeon",
            python=Python(version="3.11.9", implementation="CPython", executable="/usr/bin/python3"),
            gpus=(Gpu(name="H200", uuid="GPU-1", memory=1, driver="550"),),
        ),
    )


def contents_of(record: ExecutionRecord) -> dict[str, bytes]:
    """Return every file of the bundle of *record*, whose data must be those of this module, but the two tellers'."""
    known = {digest(content): content for content in (SOURCE, PICTURE, b"", *OUTPUTS.values())}
    code = record.method.code.files if record.method.code else ()
    kept = [
        *((file.path, file.sha256) for file in code),
        *((file.path, file.sha256) for file in record.request.files),
        *((file.path, file.sha256) for file in record.job_status.outputs),
    ]
    return record.to_json() | {path: known[sha] for path, sha in kept if path is not None}


def files_of(contents: Mapping[str, bytes]) -> tuple[BundleFile, ...]:
    return tuple(BundleFile(path, digest(content), len(content)) for path, content in contents.items())


def lay_out(folder: Path, contents: Mapping[str, bytes]) -> tuple[BundleFile, ...]:
    """Write *contents* under *folder* and return what lies there."""
    for path, content in contents.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return files_of(contents)
