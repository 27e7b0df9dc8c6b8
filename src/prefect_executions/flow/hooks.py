"""The state hook of a Method, which seals the record when Prefect has set the final state of the flow run.

Law: a hook never raises, never exits, has a time limit, needs no run context, and
may run twice, in another process and folder, with a stale `flow_run`. `settle`
finishes what it cannot.
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

from prefect_executions import background
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.parameters import register_credentials
from prefect_executions.capture.processes import kill_execution_processes
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.documents import json_value
from prefect_executions.errors import ExecutionsError, OrchestratorError, SettingsError
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.executions.record import ExecuteRequest, Instance
from prefect_executions.flow import prefect_logs
from prefect_executions.flow.background import take_deferred
from prefect_executions.flow.cancellation import is_unsupervised
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.invocation import current_invocation, interruption, is_interruption
from prefect_executions.flow.opening import Opening, add_requested_labels, never_started, workbench_for
from prefect_executions.flow.shared_secrets import current
from prefect_executions.lifecycle.history import JobStatus, ObservedState, PrefectState
from prefect_executions.lifecycle.status import Observer, terminal_status_of
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.prefect_api import finish as prefect_finish
from prefect_executions.prefect_api import flow_runs
from prefect_executions.settings import Settings
from prefect_executions.workbench.recovery import end_script_runs
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Outcome

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow

    Hook = Callable[[Flow[Any, Any], FlowRun, State[Any]], Any]


class SealingHook:
    """The hook for completion, failure, cancellation and crash: it seals the execution of the flow run."""

    __name__ = prefect_logs.HOOK

    def __init__(self, declared: Declared) -> None:
        self._declared = declared

    def __call__(self, flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
        """Seal the execution of *flow_run*, which ended in *state*.

        Return when the bundle is sealed on this machine. A background thread then updates
        archive and ledger and sends the events; the interpreter waits for it at exit, up to the time
        limit of hooks. If the run was stopped, the hook itself waits for the thread,
        because a signal may kill the process at any moment. `settle` finishes the rest.
        """
        with suppress(Exception):
            prefect_logs.shield()
            log = flow_run_logger(flow_run, flow)
            # Here: in the thread, another run of this process may have begun.
            mask = current().mask
            sealing = _Sealing(self._declared, flow_run, state, log, mask)
            patience = _patience()
            deadline = time.monotonic() + patience
            thread = background.submit(sealing.run, name="seal", patience=patience)
            in_time = sealing.sealed_or_failed.wait(deadline - time.monotonic())
            if _is_stopped(state):
                thread.join(max(0.0, deadline - time.monotonic()))
                in_time = not thread.is_alive()
            if not in_time:
                log.warning("execution %s was not finished in time; 'executions settle' finishes it", flow_run.id)


def with_sealing_hook(hooks: Sequence[Hook], declared: Declared) -> list[Hook]:
    """Return *hooks* with one sealing hook, in first place: a hook that exits skips the hooks after it."""
    return [SealingHook(declared), *(hook for hook in hooks if not isinstance(hook, SealingHook))]


def seal_in_state(
    declared: Declared, flow_run: FlowRun, state: State[Any], log: LoggerAdapter[Logger], mask: SecretMask
) -> None:
    """Seal the execution of *flow_run*, which ended in *state*, archive and index it; never raises.

    *mask* hides the secrets of this process in the message of *state*.
    """
    _Sealing(declared, flow_run, state, log, mask).run()


def _patience() -> float:
    try:
        return Settings.read().hook_timeout.total_seconds()
    except SettingsError:  # the background thread logs the error
        return 1.0


class _Sealing:
    """The sealing of one execution; `sealed_or_failed` is set when this machine has sealed the bundle, or cannot."""

    def __init__(
        self, declared: Declared, flow_run: FlowRun, state: State[Any], log: LoggerAdapter[Logger], mask: SecretMask
    ) -> None:
        self._declared = declared
        self._flow_run = flow_run
        self._state = state
        self._log = log
        self._mask = mask
        self._crashed_here = False
        self._sealed = False
        self.sealed_or_failed = threading.Event()

    def run(self) -> None:
        """Seal, archive, index and send events; never raises."""
        try:
            settings, run = Settings.read(), self._flow_run
            outcome = _seal(self._declared, run, self._state, settings, mask=self._mask, on_sealed=self._on_sealed)
            if outcome is not None and not outcome.archived:
                execution_id = outcome.job_status.job_id
                self._log.warning("execution %s is not archived yet; 'executions settle' archives it", execution_id)
        except Exception as error:  # noqa: BLE001 - a hook never raises; settle finishes the rest
            progress = "sealed but not finished" if self._sealed else "not sealed yet"
            message = "execution %s is %s; 'executions settle' finishes it: %s"
            self._log.warning(message, self._flow_run.id, progress, error)
        finally:
            self.sealed_or_failed.set()
        with suppress(Exception):
            if self._crashed_here:
                prefect_logs.flush()
            prefect_events.flush_events()

    def _on_sealed(self, outcome: Outcome) -> None:
        job_status = outcome.job_status
        self._log.info("Execution %s %s: %s", job_status.job_id, job_status.execution_status, outcome.folder)
        # A signal may kill this process soon, before Prefect has sent its log records.
        self._crashed_here = self._state.is_crashed() and _ran_in_this_process(outcome.folder)
        self._sealed = True
        self.sealed_or_failed.set()
        if not _is_stopped(self._state):
            background.yield_briefly()


def _is_stopped(state: State[Any]) -> bool:
    return state.is_crashed() or state.is_cancelling() or state.is_cancelled()


def _ran_in_this_process(folder: Path) -> bool:
    return Instance.from_json((folder / Instance.file_name).read_bytes()).pid == os.getpid()


def _seal(
    declared: Declared,
    flow_run: FlowRun,
    state: State[Any],
    settings: Settings,
    *,
    mask: SecretMask,
    on_sealed: Callable[[Outcome], None],
) -> Outcome | None:
    """Seal the execution; return None if it is sealed already or *state* does not end it."""
    workbench = workbench_for(settings)
    slot = workbench.latest(str(flow_run.id))
    if slot.bundle is not None and slot.bundle.sealed:
        if not _is_new_generation(slot.bundle.read(JobStatus), flow_run, state):
            return None  # a repeated or late state: a sealed record does not change
        slot = workbench.next_slot(str(flow_run.id), revisited=True)
    final = _final_state(flow_run, state, slot.bundle)
    decision = terminal_status_of(final.state.type, final.state.name, final.message, started=slot.bundle is not None)
    if decision is None:
        return None
    before_seal: Callable[[OpenBundle], Sequence[str]] = _nothing
    if slot.bundle is None:
        opened = _open_never_started(declared, flow_run, slot.id, settings, mask)
        workbench.begin(opened.record, opened.code)
        current_invocation().on_opened(opened.record.id)
        add_requested_labels(flow_run, opened.record.id, settings)
    elif state.is_crashed() or state.is_cancelling():
        kill_execution_processes(slot.id, instance=slot.bundle.read(Instance))
        before_seal = partial(_finish_interrupted, flow_run.parameters, settings.secret_names)
    status, reason = decision
    take_deferred(slot.id)
    message = final.message and mask.mask(final.message)
    end = Ending(status, reason, final.time, Observer.HOOK, final.state, message)
    return workbench.seal(slot.id, end, before_seal=before_seal, on_sealed=on_sealed)


def _nothing(_: OpenBundle) -> tuple[str, ...]:
    return ()


def _finish_interrupted(parameters: Mapping[str, Any], names: tuple[str, ...], bundle: OpenBundle) -> tuple[str, ...]:
    """Do what the stopped process could not do; return notes about it."""
    notes = end_script_runs(bundle)
    prefect_finish.finish_interrupted(bundle, parameters, os.environ, names)
    return notes


def _is_new_generation(sealed: JobStatus, flow_run: FlowRun, state: State[Any]) -> bool:
    """Whether the run was retried manually after the seal, and ended again before its body could begin."""
    recorded = {entry.prefect_state.id for entry in sealed.history if entry.prefect_state}
    if state.id in recorded:
        return False
    try:
        generations = flow_runs.generations(flow_runs.state_history(flow_run.id))
    except OrchestratorError:
        return False
    return len(generations) > 1 and recorded.isdisjoint(observed.state.id for observed in generations[-1])


def _final_state(flow_run: FlowRun, state: State[Any], bundle: OpenBundle | None) -> ObservedState:
    """Return the state as Prefect has it; end a cancelled run that no runner or worker supervises.

    A runner calls the cancellation hooks with a state that it creates when the process
    is gone. Its time is the time of the end, but Prefect does not have its id.
    """
    observed = flow_runs.observed_state(state)
    if not (state.is_cancelling() or state.is_crashed()):
        return observed
    request = _cancel_request(flow_run.id)
    if state.is_cancelling() and not is_unsupervised(flow_run):
        prefect_state = request.state if request else PrefectState(type=observed.state.type, name=observed.state.name)
        message = request.message if request and request.message else observed.message
        return observed._replace(state=prefect_state, message=message)
    caller = _caller(bundle) if bundle and not request and is_unsupervised(flow_run) else None
    if caller is not None:  # it ends with the Method that called it
        request = _cancel_request(caller)
    # The signal may arrive when Prefect has begun the run, but not yet the recording, which would request it.
    message = request.message if request else interruption() if is_interruption(state.data) else None
    return _set_cancelled(flow_run, observed, message) if request or message else observed


def _set_cancelled(flow_run: FlowRun, observed: ObservedState, message: str | None) -> ObservedState:
    """Move the flow run from Cancelling to Cancelled in Prefect and return the new state."""
    try:
        return flow_runs.set_cancelled(flow_run.id, message)
    except ExecutionsError:  # settle repeats it later
        return observed._replace(state=PrefectState(type="CANCELLED", name="Cancelled"), message=message)


def _caller(bundle: OpenBundle) -> UUID | None:
    relatives = bundle.read(ExecuteRequest).relatives
    parents = (relative.execution_id for relative in relatives if relative.relation == "parent")
    return next((ExecutionId.parse(parent).flow_run_uuid for parent in parents), None)


def _cancel_request(flow_run_id: UUID) -> ObservedState | None:
    with suppress(OrchestratorError):
        return flow_runs.cancel_request(flow_runs.state_history(flow_run_id))
    return None


def _open_never_started(
    declared: Declared, flow_run: FlowRun, execution_id: str, settings: Settings, mask: SecretMask
) -> Opening:
    """Return the record of a run whose body never ran; refresh *flow_run* first, because it may be stale."""
    with suppress(OrchestratorError):
        flow_run = flow_runs.flow_run(flow_run.id) or flow_run
    # Prefect's message on an invalid parameter repeats its value.
    for name, value in flow_run.parameters.items():
        register_credentials({name: json_value(value)}, mask, settings.secret_names)
    return never_started(declared, flow_run, execution_id, settings, mask)
