"""Opening of a record: facts from Prefect and this process before the author's code runs; resumption of an open record.

The identity of the Method's code takes longer to determine than all other facts in a
large repository. So it is prefetched in a background thread while Prefect creates the flow run.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect.logging.loggers import flow_run_logger

from prefect_executions import background
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture import host as host_facts
from prefect_executions.capture.code import identify
from prefect_executions.capture.packages import requirements_of
from prefect_executions.capture.parameters import masked_record, recorded_method, withheld_note
from prefect_executions.capture.probes import Failures, Probe, note_on, probe
from prefect_executions.capture.processes import this_process_with_layout
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.documents import in_utc
from prefect_executions.errors import ArchiveError, DirtyTreeError, ExecutionsError, OrchestratorError
from prefect_executions.executions.record import Agent, ExecutionRecord, Infrastructure, Instance, Process, Usage
from prefect_executions.flow.context import current_id
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.inputs import RecordedInputs
from prefect_executions.flow.invocation import owns_process
from prefect_executions.flow.recorded_code import without_credentials
from prefect_executions.lifecycle.history import (
    EntryKind,
    JobStatus,
    ObservedState,
    StatusEntry,
    add_entry,
    merge_states,
)
from prefect_executions.lifecycle.status import Observer
from prefect_executions.methods.model import REQUIREMENTS, CodeIdentity, Method
from prefect_executions.prefect_api import blocks, flow_runs, run_labels
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.settings import DirtyTree, Settings
from prefect_executions.workbench.annotations import annotate
from prefect_executions.workbench.lookup import newest_id
from prefect_executions.workbench.workbench import Workbench

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_called: ContextVar[tuple[Declared, float] | None] = ContextVar("called", default=None)


@contextmanager
def prefetch_code_identity(declared: Declared) -> Iterator[None]:
    """Identify the Method's code in a background thread, for the run that the block calls in this thread.

    Failures are ignored here: the run repeats the identification and reports them.
    """

    def identify_code() -> None:
        with suppress(Exception):
            identify(declared.source, settings=Settings.read(), environment=os.environ, since=since)

    since = time.monotonic()
    background.submit(identify_code, name="identify-code")
    token = _called.set((declared, since))
    try:
        yield
    finally:
        _called.reset(token)


def _prefetched_since(declared: Declared) -> float | None:
    """Return when the prefetch for this call started, by the monotonic clock; None without a prefetch.

    It is returned once: a second attempt in the same call begins later and must identify the code again.
    """
    called = _called.get()
    if called is None or called[0] is not declared:
        return None
    _called.set(None)
    return called[1]


_workbenches: dict[tuple[int, str], Workbench] = {}


class Opening(NamedTuple):
    """A record about to be opened, and the files of the Method's code, by path."""

    record: ExecutionRecord
    code: Mapping[str, bytes]


def now() -> datetime:
    """Return the current time in UTC; the only clock of a run."""
    return datetime.now(UTC)


def workbench_for(settings: Settings) -> Workbench:
    """Return the workbench for *settings*, shared within the process.

    Connections do not survive a fork, so a forked process opens its own workbench.
    """
    places = (settings.workbench_folder, settings.archive_url, settings.ledger_url, settings.signing_key_file)
    key = (os.getpid(), repr(places))
    if key not in _workbenches:
        _workbenches[key] = Workbench.of(
            settings, archive_block=blocks.archive_block, deliver_events=prefect_events.TerminalEvents
        )
    return _workbenches[key]


def opening(
    declared: Declared,
    run: FlowRun,
    execution_id: str,
    inputs: RecordedInputs,
    settings: Settings,
    *,
    states: Sequence[ObservedState],
    parent: str | None,
) -> Opening:
    """Return the record of a run whose parameters are valid and whose Method is about to start.

    *states* are Prefect's states of the run so far; *parent* is the execution that called it.
    """
    failures: Failures = {}
    method, code = resolve_method(declared, run, settings, failures)
    current = instance(run, settings, failures)
    requester = agent(run, settings)
    job_status = flow_runs.job_status_from_prefect(execution_id, method.id, run, states)
    job_status = with_failures(job_status, failures)
    if warning := _plain_text_warning(declared, method, code):
        job_status = add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=warning)
    return Opening(
        ExecutionRecord(
            method=method,
            request=flow_runs.request_of(
                run,
                method,
                execution_id,
                inputs.values,
                archive=settings.archive_level,
                environment=os.environ,
                parent=parent,
                names=settings.secret_names,
                rerun=inputs.rerun,
            ),
            infrastructure=infrastructure(run, settings),
            instance=current,
            job_status=job_status,
            agent=requester,
        ),
        # From the packages in `instance.json`: another one may have been installed since `code` was read.
        _with_requirements(code, current.packages),
    )


def _with_requirements(code: Mapping[str, bytes], packages: Mapping[str, str]) -> dict[str, bytes]:
    """Return *code* with the lines of *packages*, or without lines if the packages could not be read."""
    others = {path: data for path, data in code.items() if path != REQUIREMENTS}
    return {**others, REQUIREMENTS: requirements_of(packages)} if packages else others


def with_failures(job_status: JobStatus, failures: Failures) -> JobStatus:
    """Return *job_status* with a note on the facts that could not be read, if there are any."""
    note = note_on(failures)
    if note is None:
        return job_status
    return add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=note)


def instance(run: FlowRun, settings: Settings, failures: Failures) -> Instance:
    """Return the host and process of this run, and whether the process was started for *run* alone.

    *failures* gets the facts that cannot be read.
    """
    observed = host_facts.observe(
        environment=os.environ, allowed=settings.environment, names=settings.secret_names, failures=failures
    )
    own = current_id() is None and owns_process(run)
    process = observed.process
    if own and process is not None:
        process = probe(Probe.PROCESS, this_process_with_layout, process, failures)
    return flow_runs.with_worker_labels(observed, run).model_copy(update={"process": process, "own_process": own})


def with_secrets_noted(record: ExecutionRecord, unknown: Sequence[str]) -> ExecutionRecord:
    """Return *record* with a note on withheld values, and on secrets of its callers that are *unknown* here."""
    notes = [withheld_note(record.method, record.request)]
    if unknown:
        listed = ", ".join(unknown)
        notes.append(f"secrets of the calling execution cannot be read here, so they are not masked: {listed}")
    job_status = record.job_status
    for note in filter(None, notes):
        if all(entry.message != note for entry in job_status.history):
            job_status = add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=note)
    return replace(record, job_status=job_status)


def never_started(declared: Declared, run: FlowRun, execution_id: str, settings: Settings, mask: SecretMask) -> Opening:
    """Return the record of a run that ended before the Method's code could start.

    `Instance` is empty, because no process was observed. The inputs are the raw
    parameters, because they were not validated. *mask* hides the secrets of this process.
    """
    # A dirty tree may be the very reason why the run was refused; it must not prevent the record.
    failures: Failures = {}
    method, code = resolve_method(declared, run, settings.model_copy(update={"dirty": DirtyTree.RECORD}), failures)
    record = ExecutionRecord(
        method=method,
        request=flow_runs.request_of(
            run,
            method,
            execution_id,
            None,
            archive=settings.archive_level,
            environment=os.environ,
            parent=parent_of(run, settings),
            names=settings.secret_names,
        ),
        infrastructure=infrastructure(run, settings),
        instance=Instance(),
        job_status=with_failures(flow_runs.job_status_from_prefect(execution_id, method.id, run), failures),
        agent=agent(run, settings),
    )
    return Opening(with_secrets_noted(masked_record(record, mask), ()), code)


def agent(run: FlowRun, settings: Settings) -> Agent:
    """Return the agent that requested the run.

    It comes from the settings, else from the calling execution, else from Prefect, else it is the user of the process.
    """
    if settings.agent:
        return Agent(source="setting", claims={"sub": settings.agent})
    if (inherited := _agent_of_caller(settings)) is not None:
        return inherited
    if (known := flow_runs.requester(run)) is not None:
        return known
    # A container's user may have no name; then the uid is the answer and not a gap in the record.
    user = probe(Probe.USER, getpass.getuser, f"uid {os.getuid()}", {})
    return Agent(source="system", claims={"sub": user})


def _agent_of_caller(settings: Settings) -> Agent | None:
    """Return the agent of the execution that calls this run in its own process, if there is one."""
    caller = current_id()
    if caller is None:
        return None
    try:
        return OpenBundle(workbench_for(settings).folder, caller).read(Agent)
    except (ExecutionsError, OSError):  # the record leaves out what could not be observed
        return None


def parent_of(run: FlowRun, settings: Settings) -> str | None:
    """Return the id of the execution that started this run: in this process, or as Prefect records it."""
    if (parent := current_id()) is not None:
        return parent
    try:
        parent_run = flow_runs.parent_run_id(run)
        return None if parent_run is None else newest_id(workbench_for(settings), str(parent_run))
    except (OrchestratorError, ArchiveError):  # the record leaves out what could not be observed
        return None


def resolve_method(
    declared: Declared, run: FlowRun, settings: Settings, failures: Failures
) -> tuple[Method, Mapping[str, bytes]]:
    """Return the Method with the identity of its code, and the files of that code.

    *failures* gets the facts that cannot be read.

    Files that contain a key, or the credentials of a URL, as the default of an input are left
    out: the record has only their digests. This includes the diff.
    """
    sent = infrastructure(run, settings)
    settings = settings.model_copy(update={"image": sent.image or "", "image_digest": sent.image_digest or ""})
    since, nothing = _prefetched_since(declared), (CodeIdentity(), dict[str, bytes]())
    read = partial(identify, declared.source, settings=settings, environment=os.environ, since=since, failures=failures)
    identity, code = probe(Probe.CODE, read, nothing, failures)
    if Probe.CODE in failures and settings.dirty is DirtyTree.REFUSE:
        raise DirtyTreeError(f"Method '{declared.method.id}'", ())
    identity, allowed = without_credentials(declared, identity, code, names=settings.secret_names)
    method = recorded_method(declared.method, settings.secret_names)
    return method.model_copy(update={"code": identity}), allowed


def add_requested_labels(run: FlowRun, execution_id: str, settings: Settings) -> None:
    """Add the name and the experiment that were submitted with *run*; a failure is a warning in its log.

    A second attempt writes the same annotations, which changes nothing.
    """
    changes = run_labels.changes_in(run)
    if not changes:
        return
    at = in_utc(run.created) if run.created else now()
    try:
        annotate(workbench_for(settings), execution_id, changes, agent=agent(run, settings).name, at=at)
    except ExecutionsError as error:
        log = flow_run_logger(run)
        log.warning("the submitted name and experiment of execution %s are not recorded: %s", execution_id, error)


def _plain_text_warning(declared: Declared, method: Method, code: Mapping[str, bytes]) -> str | None:
    if method.inputs == declared.method.inputs:
        return None
    missing = [file.path for file in method.code.files if file.path not in code] if method.code else []
    consequence = f"; the record has only the digest of {', '.join(missing)}" if missing else ""
    return f"the default of an input holds a key or password in plain text{consequence}. Make it a secret input."


def infrastructure(run: FlowRun, settings: Settings) -> Infrastructure:
    """Return where *run* was sent: from Prefect and its worker; the operator's settings override the image."""
    sent = flow_runs.infrastructure(run, os.environ, settings.secret_names)
    image, digest = settings.image or sent.image, settings.image_digest or sent.image_digest
    return sent.model_copy(update={"image": image, "image_digest": digest})


def late_worker_facts(
    bundle: OpenBundle, recorded: Infrastructure, run: FlowRun, settings: Settings
) -> tuple[Infrastructure, Instance] | None:
    """Return what a worker reported about *run* after its record was opened with *recorded*; None if nothing is due.

    On Kubernetes, the worker learns the image when the container runs, perhaps after the Method began.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    if not recorded.type.endswith("kubernetes") or recorded.image_id or recorded.image_digest:
        return None
    current = flow_runs.flow_run(run.id)
    if current is None:
        return None
    return infrastructure(current, settings), flow_runs.with_worker_labels(bundle.read(Instance), current)


class Resumption(NamedTuple):
    """The record of an execution that continues, and the headline of its next attempt in the logs."""

    record: ExecutionRecord
    headline: str


def continued(
    record: ExecutionRecord, declared: Declared, run: FlowRun, states: Sequence[ObservedState], settings: Settings
) -> Resumption:
    """Return the *record* of an open execution with its next attempt, or its resumption.

    If another process continues it, the record gets the new host and process, and a note
    on the previous one. The usage so far stays; exit code and exception of the previous
    attempt are removed from it, because the history has them. *states* are Prefect's states so far.
    """
    failures: Failures = {}
    current, previous = instance(run, settings, failures), record.instance
    job_status = with_failures(_with_start(record.job_status, states), failures)
    if (current.hostname, current.pid) != (previous.hostname, previous.pid):
        job_status = _with_new_process(job_status, previous, current)
        for path in _changed_files(record.method.code, resolve_method(declared, run, settings, {})[0].code):
            note = f"{path} has changed since the execution began; the bundle has the first version"
            job_status = add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=note)
    usage = (previous.usage or Usage()).model_copy(update={"exit_code": None, "exception": None, "returned": None})
    processes = _earlier_processes(previous, current)
    return Resumption(
        replace(
            record,
            job_status=job_status,
            infrastructure=infrastructure(run, settings),
            instance=current.model_copy(update={"usage": usage, "earlier_processes": processes}),
        ),
        _headline(job_status),
    )


def taken_over(opened: ExecutionRecord, archived: ExecutionRecord, states: Sequence[ObservedState]) -> Resumption:
    """Return the record *opened* on this machine with the history that another machine has *archived*.

    The outputs so far are on a disk that this machine cannot read. The record does not say
    whether the other process has ended, because this is unknown.
    """
    job_status = _with_start(archived.job_status, states, default="another machine started it again")
    before, current = _process(archived.instance), _process(opened.instance)
    note = f"continues in {current}; it ran in {before} before, and the outputs of that process are missing here"
    job_status = add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=note)
    return Resumption(replace(opened, job_status=job_status), _headline(job_status))


def _process(instance: Instance) -> str:
    return f"pod {instance.pod}" if instance.pod else f"process {instance.pid} of {instance.hostname}"


def _with_start(
    job_status: JobStatus,
    states: Sequence[ObservedState],
    *,
    default: str = "the previous process ended without a report",
) -> JobStatus:
    """Return *job_status* with an attempt or resumption; *default* is the reason if Prefect has none."""
    merged = merge_states(job_status, states)
    if any(_is_start(entry) for entry in merged.history[len(job_status.history) :]):
        return merged
    lost: dict[str, Any] = {"attempt": merged.attempt + 1, "message": default}
    if states and states[-1].state.type == "RUNNING":
        state, at, _ = states[-1]
        return add_entry(merged, EntryKind.ATTEMPT, at, observer=Observer.PREFECT, prefect_state=state, **lost)
    return add_entry(merged, EntryKind.ATTEMPT, now(), observer=Observer.HOOK, **lost)


def _with_new_process(job_status: JobStatus, previous: Instance, current: Instance) -> JobStatus:
    note = f"continues in {_process(current)}"
    if previous.pid is not None:
        note += f"; it ran in {_process(previous)} before"
    return add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=note)


def _earlier_processes(previous: Instance, current: Instance) -> tuple[Process, ...] | None:
    """Return the earlier processes, whose forks may still run; killing the execution kills these, too."""
    last = previous.process if previous.own_process and previous.process != current.process else None
    processes = (*(previous.earlier_processes or ()), *([last] if last and last.layout else ()))
    return processes or None


def _changed_files(previous: CodeIdentity | None, current: CodeIdentity | None) -> Iterator[str]:
    """Yield the files with another digest; two processes may have loaded different files."""
    digests = {file.path: file.sha256 for file in (previous.files if previous else ())}
    for file in current.files if current else ():
        if digests.get(file.path, file.sha256) != file.sha256:
            yield file.path


def _headline(job_status: JobStatus) -> str:
    start = next(entry for entry in reversed(job_status.history) if _is_start(entry))
    what = f"attempt {start.attempt}" if start.kind is EntryKind.ATTEMPT else "resumed"
    return f"{what}, {start.time.isoformat(timespec='milliseconds')}"


def _is_start(entry: StatusEntry) -> bool:
    return entry.kind in {EntryKind.ATTEMPT, EntryKind.RESUMED}
