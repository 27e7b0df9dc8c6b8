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
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture import host as host_facts
from prefect_executions.capture.code import DIFF, REQUIREMENTS, identify
from prefect_executions.capture.parameters import plain_text_defaults, recorded_method
from prefect_executions.capture.processes import this_process_with_layout
from prefect_executions.errors import ArchiveError, OrchestratorError
from prefect_executions.executions.record import Agent, ExecutionRecord, Infrastructure, Instance, Process, Usage
from prefect_executions.flow.context import current_id
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.invocation import owns_process
from prefect_executions.lifecycle.history import (
    EntryKind,
    JobStatus,
    ObservedState,
    StatusEntry,
    add_entry,
    merge_states,
)
from prefect_executions.lifecycle.status import Observer
from prefect_executions.methods.model import CodeIdentity, Method
from prefect_executions.prefect_api import blocks, flow_runs
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.settings import DirtyTree, Settings
from prefect_executions.workbench import background
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


def called_at(declared: Declared) -> float | None:
    """Return since when what was seen of the Method's code is true of the run that begins; None if only now is.

    A second attempt in the same call begins later, so it is told once.
    """
    called = _called.get()
    if called is None or called[0] is not declared:
        return None
    _called.set(None)
    return called[1]


_workbenches: dict[tuple[int, str], Workbench] = {}


class Opening(NamedTuple):
    """A record about to be opened, and the files of the Method's code that go with it."""

    record: ExecutionRecord
    code: Mapping[str, bytes]


def now() -> datetime:
    """Return this moment in UTC; the one clock of a run."""
    return datetime.now(UTC)


def workbench_for(settings: Settings) -> Workbench:
    """Return the workbench that *settings* describe, one for each process.

    Connections do not survive a fork, so a child makes its own.
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
    values: Mapping[str, Any],
    settings: Settings,
    *,
    heard: Sequence[ObservedState],
) -> Opening:
    """Return the record of a run whose parameters are valid and whose Method is about to start.

    *heard* are Prefect's states so far.
    """
    method, code = resolve_method(declared, run, settings)
    job_status = flow_runs.job_status_from_prefect(execution_id, method.id, run, heard)
    if told := _told_of_clear_defaults(declared, method, code):
        job_status = add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=told)
    return Opening(
        ExecutionRecord(
            method=method,
            request=flow_runs.request_of(
                run,
                method,
                execution_id,
                values,
                archive=settings.archive_level,
                environment=os.environ,
                parent=_parent(run, settings),
            ),
            infrastructure=infrastructure(run, settings),
            instance=instance(run, settings),
            job_status=job_status,
            agent=agent(run, settings),
        ),
        code,
    )


def instance(run: FlowRun, settings: Settings) -> Instance:
    """Return where this process runs, and whether it was started for *run* alone."""
    here = host_facts.observe(environment=os.environ, allowed=settings.environment)
    own = current_id() is None and owns_process(run)
    process = this_process_with_layout() if own else here.process
    return flow_runs.with_worker_labels(here, run).model_copy(update={"process": process, "own_process": own})


def never_started(declared: Declared, run: FlowRun, execution_id: str, settings: Settings) -> Opening:
    """Return the record of a run that ended before the Method's code could start.

    What it would have run on was not observed, so `Instance` is empty; its inputs
    are the raw parameters, because none were validated.
    """
    # A dirty tree that is refused is the end that is to be told here, not a reason to tell nothing.
    method, code = resolve_method(declared, run, settings.model_copy(update={"dirty": DirtyTree.RECORD}))
    return Opening(
        ExecutionRecord(
            method=method,
            request=flow_runs.request_of(
                run,
                method,
                execution_id,
                None,
                archive=settings.archive_level,
                environment=os.environ,
                parent=_parent(run, settings),
            ),
            infrastructure=infrastructure(run, settings),
            instance=Instance(),
            job_status=flow_runs.job_status_from_prefect(execution_id, method.id, run),
            agent=agent(run, settings),
        ),
        code,
    )


def agent(run: FlowRun, settings: Settings) -> Agent:
    """Return who asked, as far as anything says it: the operator's setting, Prefect, or the system's user."""
    if settings.agent:
        return Agent(source="setting", claims={"sub": settings.agent})
    maker = flow_runs.created_by(run)
    if maker and "name" in maker:
        return Agent(source="prefect", claims={"sub": maker["name"], **maker})
    try:
        return Agent(source="system", claims={"sub": getpass.getuser()})
    except (KeyError, OSError):  # a container's user without a name
        return Agent(source="system", claims={"sub": f"uid {os.getuid()}"})


def _parent(run: FlowRun, settings: Settings) -> str | None:
    """The execution whose Method asked for this run: the one around us, or one that Prefect tells of."""
    if (around := current_id()) is not None:
        return around
    try:
        called_by = flow_runs.parent_run_id(run)
        return None if called_by is None else newest_id(workbench_for(settings), str(called_by))
    except (OrchestratorError, ArchiveError):  # what cannot be observed is absent
        return None


def resolve_method(declared: Declared, run: FlowRun, settings: Settings) -> tuple[Method, Mapping[str, bytes]]:
    """Return the Method with the identity of its code, and the files of that code.

    A file in which the author left a key, or the credentials of a URL, as the default
    of an input is told by its digest alone. So is the diff.
    """
    there = infrastructure(run, settings)
    settings = settings.model_copy(update={"image": there.image or "", "image_digest": there.image_digest or ""})
    identity, code = identify(declared.source, settings=settings, environment=os.environ, since=called_at(declared))
    if declared.withheld:
        code = {path: data for path, data in code.items() if path == REQUIREMENTS}
    clear = plain_text_defaults(declared.method)
    kept = {path: data for path, data in code.items() if not clear.holds(data)}
    if DIFF in code.keys() - kept.keys() and identity.repository:
        repository = identity.repository.model_copy(update={"diff_kept": False})
        identity = identity.model_copy(update={"repository": repository})
    return recorded_method(declared.method).model_copy(update={"code": identity}), kept


def _told_of_clear_defaults(declared: Declared, method: Method, code: Mapping[str, bytes]) -> str | None:
    if method.inputs == declared.method.inputs:
        return None
    missing = [file.path for file in method.code.files if file.path not in code] if method.code else []
    kept = f"; so {', '.join(missing)} is told by its digest alone" if missing else ""
    return f"the default of an input holds a key or password in clear{kept}. Make it a secret input."


def infrastructure(run: FlowRun, settings: Settings) -> Infrastructure:
    """Return what Prefect, its worker and the operator say about where *run* was sent."""
    told = flow_runs.infrastructure(run, os.environ)
    image, digest = settings.image or told.image, settings.image_digest or told.image_digest
    return told.model_copy(update={"image": image, "image_digest": digest})


def seen_late(
    bundle: OpenBundle, told: Infrastructure, run: FlowRun, settings: Settings
) -> tuple[Infrastructure, Instance] | None:
    """Return what a worker told of *run* after its record was opened with *told*; None where there is nothing to ask.

    On Kubernetes the image is known when the container runs, and the Method may be faster.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    if not told.type.endswith("kubernetes") or told.image_id or told.image_digest:
        return None
    newest = flow_runs.flow_run(run.id)
    return (
        (infrastructure(newest, settings), flow_runs.with_worker_labels(bundle.read(Instance), newest))
        if newest
        else None
    )


class Resumption(NamedTuple):
    """The record as it goes on, and the line that tells in the logs where that is."""

    record: ExecutionRecord
    headline: str


def continued(
    record: ExecutionRecord, declared: Declared, run: FlowRun, heard: Sequence[ObservedState], settings: Settings
) -> Resumption:
    """Return the *record* of an open execution whose Method begins once more; *heard* are Prefect's states so far.

    Where it runs is told anew when it is another process, with a note that says
    where it ran before. What was used before stays in `usage`; how the attempt
    before ended is in the history, and in `usage` no more.
    """
    here, before = instance(run, settings), record.instance
    job_status = _begun(record.job_status, heard)
    if (here.hostname, here.pid) != (before.hostname, before.pid):
        job_status = _moved(job_status, before, here)
        for changed in _changed(record.method.code, resolve_method(declared, run, settings)[0].code):
            note = f"{changed} was changed since it began; the bundle keeps it as it was then"
            job_status = add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=note)
    used = (before.usage or Usage()).model_copy(update={"exit_code": None, "exception": None})
    return Resumption(
        replace(
            record,
            job_status=job_status,
            infrastructure=infrastructure(run, settings),
            instance=here.model_copy(update={"usage": used, "earlier_processes": _earlier(before, here)}),
        ),
        _headline(job_status),
    )


def taken_over(opened: ExecutionRecord, before: ExecutionRecord, heard: Sequence[ObservedState]) -> Resumption:
    """Return the record that was *opened* here with the history of *before*, which another machine left in the archive.

    What was written there is on a disk that cannot be reached from here. Whether
    that process has ended is not known, so nothing is said of it.
    """
    job_status = _begun(before.job_status, heard, unheard="it was begun again elsewhere")
    there, here = _place(before.instance), _place(opened.instance)
    note = f"goes on in {here}; before, it ran in {there}, and what it wrote there is not here"
    job_status = add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=note)
    return Resumption(replace(opened, job_status=job_status), _headline(job_status))


def _place(instance: Instance) -> str:
    return f"pod {instance.pod}" if instance.pod else f"process {instance.pid} of {instance.hostname}"


def _begun(
    job_status: JobStatus,
    heard: Sequence[ObservedState],
    *,
    unheard: str = "the process before it ended without a word",
) -> JobStatus:
    """Tell that it goes on; where Prefect tells no reason, tell what is *unheard* of."""
    told = merge_states(job_status, heard)
    if any(_is_turn(entry) for entry in told.history[len(job_status.history) :]):
        return told
    lost: dict[str, Any] = {"attempt": told.attempt + 1, "message": unheard}
    if heard and heard[-1].state.type == "RUNNING":
        state, at, _ = heard[-1]
        return add_entry(told, EntryKind.ATTEMPT, at, observer=Observer.PREFECT, prefect_state=state, **lost)
    return add_entry(told, EntryKind.ATTEMPT, now(), observer=Observer.HOOK, **lost)


def _moved(job_status: JobStatus, before: Instance, here: Instance) -> JobStatus:
    note = f"goes on in {_place(here)}"
    if before.pid is not None:
        note += f"; before, it ran in {_place(before)}"
    return add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=note)


def _earlier(before: Instance, here: Instance) -> tuple[Process, ...] | None:
    """The processes before, whose forks may live on: who ends the execution ends them as well."""
    left = before.process if before.own_process and before.process != here.process else None
    known = (*(before.earlier_processes or ()), *([left] if left and left.layout else ()))
    return known or None


def _changed(before: CodeIdentity | None, here: CodeIdentity | None) -> Iterator[str]:
    """Which files are another now; which are loaded may differ between two processes."""
    known = {file.path: file.sha256 for file in (before.files if before else ())}
    for file in here.files if here else ():
        if known.get(file.path, file.sha256) != file.sha256:
            yield file.path


def _headline(job_status: JobStatus) -> str:
    turn = next(entry for entry in reversed(job_status.history) if _is_turn(entry))
    what = f"attempt {turn.attempt}" if turn.kind is EntryKind.ATTEMPT else "resumed"
    return f"{what}, {turn.time.isoformat(timespec='milliseconds')}"


def _is_turn(entry: StatusEntry) -> bool:
    return entry.kind in {EntryKind.ATTEMPT, EntryKind.RESUMED}
