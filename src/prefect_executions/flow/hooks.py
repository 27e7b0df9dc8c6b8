"""The state hooks of a Method: the light, last part of its record, when the final state is known.

Law: a hook never raises, never exits, bounds its own time, needs no run
context, and may run twice, in another process and folder, with a stale
`flow_run`. What it cannot finish is left to `settle`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.logging.loggers import flow_run_logger

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import kill_execution_processes
from prefect_executions.errors import ExecutionsError, OrchestratorError, SettingsError
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.executions.record import ExecuteRequest, Instance
from prefect_executions.flow import prefect_logs
from prefect_executions.flow.background import take_deferred
from prefect_executions.flow.cancellation import is_unsupervised
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.invocation import current_invocation
from prefect_executions.flow.opening import Opening, never_started, workbench_for
from prefect_executions.lifecycle.history import JobStatus, ObservedState, PrefectState
from prefect_executions.lifecycle.status import Observer, terminal_status_of
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.prefect_api import finish as prefect_finish
from prefect_executions.prefect_api import flow_runs
from prefect_executions.settings import Settings
from prefect_executions.workbench import background
from prefect_executions.workbench.recovery import end_script_runs
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Outcome

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow

    Hook = Callable[[Flow[Any, Any], FlowRun, State[Any]], Any]


class SealingHook:
    """The hook for every kind of end: it seals the execution of the flow run that ended."""

    __name__ = prefect_logs.HOOK

    def __init__(self, declared: Declared) -> None:
        self._declared = declared

    def __call__(self, flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
        """Seal the execution of *flow_run*, which ended in *state*.

        It returns when the bundle is sealed on this machine; archive, ledger and
        events follow in a thread that the end of the process waits for, for a bounded
        time. Of a run that was stopped it waits for them, because a signal may be about
        to end the process. What is left undone `settle` finishes.
        """
        with suppress(Exception):
            prefect_logs.shield()
            log = flow_run_logger(flow_run, flow)
            sealing = _Sealing(self._declared, flow_run, state, log)
            patience = _patience()
            until = time.monotonic() + patience
            thread = background.submit(sealing.go, name="seal", patience=patience)
            in_time = sealing.here.wait(until - time.monotonic())
            if _is_stopped(state):
                thread.join(max(0.0, until - time.monotonic()))
                in_time = not thread.is_alive()
            if not in_time:
                log.warning("execution %s is not done in time; 'executions settle' does what is left", flow_run.id)


def hooked(hooks: Sequence[Hook], declared: Declared) -> list[Hook]:
    """Return *hooks* with ours first, once: a later hook that exits skips those behind it."""
    return [SealingHook(declared), *(hook for hook in hooks if not isinstance(hook, SealingHook))]


def _patience() -> float:
    try:
        return Settings.read().hook_timeout.total_seconds()
    except SettingsError:  # the thread meets it, too, and tells it
        return 1.0


class _Sealing:
    """The sealing of one run's execution; `here` is set when its bundle is sealed on this machine, or never will be."""

    def __init__(self, declared: Declared, flow_run: FlowRun, state: State[Any], log: LoggerAdapter[Logger]) -> None:
        self._declared = declared
        self._flow_run = flow_run
        self._state = state
        self._log = log
        self._stopped_here = False
        self.here = threading.Event()

    def go(self) -> None:
        """Seal, archive, index and tell; never raises."""
        try:
            outcome = _sealed(self._declared, self._flow_run, self._state, Settings.read(), self._is_here)
            if outcome is not None and not outcome.archived:
                self._log.warning(
                    "execution %s is not archived yet; 'executions settle' does it", outcome.job_status.job_id
                )
        except Exception as error:  # noqa: BLE001 - a hook never raises; settle does what is missing
            undone = "sealed, and the rest is left" if self.here.is_set() else "not sealed yet, which is left"
            self._log.warning("execution %s is %s to 'executions settle': %s", self._flow_run.id, undone, error)
        finally:
            self.here.set()
        with suppress(Exception):
            if self._stopped_here:
                prefect_logs.send_now()
            prefect_events.flush_events()

    def _is_here(self, outcome: Outcome) -> None:
        told = outcome.job_status
        self._log.info("Execution %s %s: %s", told.job_id, told.execution_status, outcome.folder)
        # A signal may be about to end this process, with all that Prefect has not sent yet.
        self._stopped_here = self._state.is_crashed() and _ran_here(outcome.folder)
        self.here.set()
        if not _is_stopped(self._state):
            background.yield_briefly()


def _is_stopped(state: State[Any]) -> bool:
    return state.is_crashed() or state.is_cancelling() or state.is_cancelled()


def _ran_here(folder: Path) -> bool:
    return Instance.from_json((folder / Instance.file_name).read_bytes()).pid == os.getpid()


def _sealed(
    declared: Declared,
    flow_run: FlowRun,
    state: State[Any],
    settings: Settings,
    on_sealed: Callable[[Outcome], None],
) -> Outcome | None:
    """Seal what the state ends; None when it ends nothing or the execution was sealed before."""
    workbench = workbench_for(settings)
    place = workbench.latest(str(flow_run.id))
    if place.bundle is not None and place.bundle.sealed:
        if not _lives_again(place.bundle.read(JobStatus), flow_run, state):
            return None  # heard before, or a late word: a sealed record changes no more
        place = workbench.next_slot(str(flow_run.id), revisited=True)
    seen = _heard(flow_run, state, place.bundle)
    decided = terminal_status_of(seen.state.type, seen.state.name, seen.message, started=place.bundle is not None)
    if decided is None:
        return None
    before_seal: Callable[[OpenBundle], Sequence[str]] = _nothing
    if place.bundle is None:
        opened = _fresh(declared, flow_run, place.id, settings)
        workbench.begin(opened.record, opened.code)
        current_invocation().on_opened(opened.record.id)
    elif state.is_crashed() or state.is_cancelling():
        kill_execution_processes(place.id, instance=place.bundle.read(Instance))
        before_seal = partial(_finish, flow_run.parameters)
    status, reason = decided
    take_deferred(place.id)
    end = Ending(status, reason, seen.time, Observer.HOOK, seen.state, seen.message)
    return workbench.seal(place.id, end, before_seal=before_seal, on_sealed=on_sealed)


def _nothing(_: OpenBundle) -> tuple[str, ...]:
    return ()


def _finish(parameters: Mapping[str, Any], bundle: OpenBundle) -> tuple[str, ...]:
    """Do what a process that was stopped could not do, and return notes on it."""
    notes = end_script_runs(bundle)
    prefect_finish.finish_interrupted(bundle, parameters, os.environ)
    return notes


def _lives_again(sealed: JobStatus, flow_run: FlowRun, state: State[Any]) -> bool:
    """Whether the run was retried by hand since it was sealed, and ended again before its body could begin."""
    known = {entry.prefect_state.id for entry in sealed.history if entry.prefect_state}
    if state.id in known:
        return False
    try:
        told = flow_runs.generations(flow_runs.state_history(flow_run.id))
    except OrchestratorError:
        return False
    return len(told) > 1 and known.isdisjoint(one.state.id for one in told[-1])


def _heard(flow_run: FlowRun, state: State[Any], bundle: OpenBundle | None) -> ObservedState:
    """The state as Prefect keeps it; of a run that nobody watches over, as Prefect is told that it ended.

    A runner calls the cancellation hooks with a state that it makes up when the
    process is gone. Its time is that of the end; its id means nothing to Prefect.
    """
    seen = flow_runs.observed_state(state)
    if not (state.is_cancelling() or state.is_crashed()):
        return seen
    asked = _asked_to_cancel(flow_run.id)
    if state.is_cancelling() and not is_unsupervised(flow_run):
        kept = asked.state if asked else PrefectState(type=seen.state.type, name=seen.state.name)
        return seen._replace(state=kept, message=asked.message if asked and asked.message else seen.message)
    caller = _caller(bundle) if bundle and not asked and is_unsupervised(flow_run) else None
    if caller is not None:  # it ends with the Method that called it
        asked = _asked_to_cancel(caller)
    return _cancelled(flow_run, seen, asked.message) if asked else seen


def _cancelled(flow_run: FlowRun, seen: ObservedState, message: str | None) -> ObservedState:
    """Tell Prefect that the run is cancelled, which has only noted the wish, and return that state."""
    try:
        return flow_runs.set_cancelled(flow_run.id, message)
    except ExecutionsError:  # settle tells it later
        return seen._replace(state=PrefectState(type="CANCELLED", name="Cancelled"), message=message)


def _caller(bundle: OpenBundle) -> UUID | None:
    relatives = bundle.read(ExecuteRequest).relatives
    parents = (relative.execution_id for relative in relatives if relative.relation == "parent")
    return next((ExecutionId.parse(parent).flow_run_uuid for parent in parents), None)


def _asked_to_cancel(flow_run_id: UUID) -> ObservedState | None:
    with suppress(OrchestratorError):
        return flow_runs.cancel_request(flow_runs.state_history(flow_run_id))
    return None


def _fresh(declared: Declared, flow_run: FlowRun, execution_id: str, settings: Settings) -> Opening:
    """The record of a run whose body never ran; the flow run at hand may be stale, so Prefect is asked first."""
    with suppress(OrchestratorError):
        flow_run = flow_runs.flow_run(flow_run.id) or flow_run
    return never_started(declared, flow_run, execution_id, settings)
