"""Cancelling an execution: ask Prefect, stop the process if no worker does, wait for the sealed record.

Law: only a process that was started for this execution alone is ever signalled.
Any other process polls Prefect and interrupts the Method's code by itself.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import alive, kill_execution_processes, send
from prefect_executions.errors import EndedError, ExecutionsError, NotFoundError, OrchestratorError, RequestError
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.executions.record import ExecutionRecord, Instance
from prefect_executions.lifecycle.history import ObservedState
from prefect_executions.lifecycle.status import Status
from prefect_executions.prefect_api import flow_runs
from prefect_executions.workbench.catalog import Catalog

_POLL_RECORD = 0.5  # seconds
_POLL_PREFECT = 3.0

# Seconds after the request, and the signal. Prefect's runners leave 30 s between SIGTERM and SIGKILL; the Method's
# cleanup gets as much here.
_SIGNALS_IF_CALLED = ((10.0, signal.SIGTERM), (40.0, signal.SIGKILL))
# Later: a worker that is alive has ended the process by then.
_SIGNALS_IF_WORKER = ((50.0, signal.SIGTERM), (80.0, signal.SIGKILL))


class KillEscalation:
    """The steps that stop the process of one execution: a request, SIGTERM, SIGKILL; none if it cannot be reached."""

    def __init__(self, catalog: Catalog, record: ExecutionRecord | None) -> None:
        self._record = record
        self._process = record.instance.process if record else None
        self._reachable = self._process is not None and alive(self._process) is not None
        self._called = record is not None and record.infrastructure.type == "direct"
        self._bundle = OpenBundle(catalog.workbench.folder, record.id) if record else None
        self._remaining = list(_SIGNALS_IF_CALLED if self._called else _SIGNALS_IF_WORKER)
        self._requested = False

    @property
    def dead(self) -> bool:
        """Whether the process is gone and has no worker that would report it."""
        return self._called and self._process is not None and alive(self._process) is False

    def step(self, waited: float) -> Iterator[str]:
        """Take the steps that are due after *waited* seconds; yield a line about each."""
        if self._record is None or self._bundle is None:
            return
        if not self._requested:
            self._requested = True
            yield from self._request(self._record, self._bundle)
        if not self._reachable or not self._record.instance.own_process:
            return
        if self._is_sealing():
            yield from self._warn_of_sealing(waited)
            return
        while self._remaining and waited >= self._remaining[0][0]:
            _, number = self._remaining.pop(0)
            yield from self._send(number)

    def _request(self, record: ExecutionRecord, bundle: OpenBundle) -> Iterator[str]:
        process = f"process {record.instance.pid} on {record.instance.hostname}"
        if not self._called:
            worker = record.infrastructure.worker
            yield f"{f'Worker {worker}' if worker else 'Its runner'} ends {process}"
            return
        if self._reachable and bundle.scratch.is_dir():
            with suppress(ExecutionsError):  # the process polls Prefect as well
                bundle.request_cancel()
        yield f"It was called in {process}, which polls Prefect every ten seconds and stops by itself"

    def _warn_of_sealing(self, waited: float) -> Iterator[str]:
        assert self._process is not None  # noqa: S101 - it is reachable
        if self._remaining and waited >= self._remaining[0][0]:
            self._remaining.clear()
            yield (
                f"The Method's code has ended, and process {self._process.pid} records its outputs, so it gets no "
                f"signal. If it hangs: kill -9 {self._process.pid}, then executions settle --once"
            )

    def _send(self, number: signal.Signals) -> Iterator[str]:
        assert self._process is not None  # noqa: S101 - it is reachable
        try:
            sent = send(self._process, number)
        except PermissionError:
            yield f"Process {self._process.pid} belongs to another user, so it cannot be ended from here"
            return
        if sent:
            yield f"Process {self._process.pid} does not stop, so it was sent {number.name}"
        if number is signal.SIGKILL and self._record is not None:
            kill_execution_processes(self._record.id, instance=self._record.instance)

    def _is_sealing(self) -> bool:
        """Whether the Method's code has ended, so that its process is sealing the record."""
        with suppress(ExecutionsError):
            usage = self._bundle.read(Instance).usage if self._bundle else None
            return usage is not None and (usage.exit_code is not None or usage.exception is not None)
        return False


class CancelResult(NamedTuple):
    """The outcome of a cancel request: Prefect's state, and the record's status; None if it has no record yet."""

    id: str
    state: str
    status: Status | None
    sealed: bool
    message: str | None


def cancel(catalog: Catalog, prefix: str, *, by: str, wait: timedelta, tell: Callable[[str], None]) -> CancelResult:
    """Cancel the execution whose id begins with *prefix*, on behalf of *by*; return when its record is sealed.

    Returns after *wait* at the latest. A second request changes nothing and waits
    once more. *tell* receives a line about each step.

    Raises:
        NotFoundError: If there is no such execution.
        AmbiguousIdError: If several ids begin with *prefix*.
        EndedError: If it has ended otherwise, or its process has.
        RequestError: If another execution called it, and must be cancelled instead.
        OrchestratorError: If Prefect's API is unavailable.
    """
    execution_id, record = _find(catalog, prefix)
    if record is not None and catalog.storage_state(execution_id).sealed:
        return _already_sealed(record)
    escalation = KillEscalation(catalog, record)
    if record is not None:
        _check(record, escalation)
    reply = flow_runs.cancel(_flow_run_id(execution_id), f"cancelled by {by}")
    state = reply.state.state
    if reply.refused and not (state.is_cancelling or state.is_cancelled):
        raise EndedError(
            f"Prefect's state of execution {execution_id} is {state.name}, so it cannot be cancelled. Its record is "
            "not sealed yet; if its process does not seal it, 'executions settle --once' does."
        )
    tell(f"Prefect says {state.name} of {execution_id}")
    if state.is_cancelled and not reply.refused:
        # The run was scheduled or suspended: no process works on it, so none will seal it.
        status = record.status if record else None
        return CancelResult(execution_id, state.name, status, sealed=False, message=reply.state.message)
    return _wait_for_seal(catalog, execution_id, reply.state, escalation, wait=wait.total_seconds(), tell=tell)


def _find(catalog: Catalog, prefix: str) -> tuple[str, ExecutionRecord | None]:
    """Return the execution's id and record; before a run begins it has no record, and Prefect needs its whole id."""
    try:
        execution_id = catalog.find(prefix)
    except NotFoundError as error:
        try:
            flow_run_id = UUID(prefix)
        except ValueError:
            raise NotFoundError(f"{error} For a run that has not begun, give the whole flow run id.") from None
        if flow_runs.flow_run(flow_run_id) is None:
            raise
        return str(flow_run_id), None
    return execution_id, catalog.record(execution_id)


def _already_sealed(record: ExecutionRecord) -> CancelResult:
    if record.status is not Status.CANCELLED:
        raise EndedError(f"execution {record.id} has ended as {record.status}; there is nothing to cancel")
    return CancelResult(record.id, "Cancelled", record.status, sealed=True, message=record.job_status.message)


def _check(record: ExecutionRecord, escalation: KillEscalation) -> None:
    parent = next((each.execution_id for each in record.request.relatives if each.relation == "parent"), None)
    if parent is not None and record.infrastructure.type == "direct":
        raise RequestError(f"execution {record.id} runs inside execution {parent} and ends with it; cancel that one")
    if escalation.dead:
        raise EndedError(
            f"the process of execution {record.id} is gone, so there is nothing to cancel; "
            "'executions settle --once' seals its record with the reason"
        )


def _wait_for_seal(
    catalog: Catalog,
    execution_id: str,
    state: ObservedState,
    escalation: KillEscalation,
    *,
    wait: float,
    tell: Callable[[str], None],
) -> CancelResult:
    begun = next_poll = time.monotonic()
    while True:
        waited = time.monotonic() - begun
        for line in escalation.step(waited):
            tell(line)
        record = _record(catalog, execution_id)
        if record is not None and catalog.storage_state(execution_id).sealed:
            newest = _newest(execution_id, state).state.name
            return CancelResult(execution_id, newest, record.status, sealed=True, message=record.job_status.message)
        if time.monotonic() >= next_poll:
            state, next_poll = _newest(execution_id, state), time.monotonic() + _POLL_PREFECT
        if waited >= wait or escalation.dead:
            status = record.status if record else None
            return CancelResult(execution_id, state.state.name, status, sealed=False, message=state.message)
        time.sleep(_POLL_RECORD)


def _record(catalog: Catalog, execution_id: str) -> ExecutionRecord | None:
    with suppress(NotFoundError):
        return catalog.record(execution_id)
    return None


def _newest(execution_id: str, last: ObservedState) -> ObservedState:
    with suppress(OrchestratorError):
        run = flow_runs.flow_run(_flow_run_id(execution_id))
        if run is not None and run.state is not None:
            return flow_runs.observed_state(run.state)
    return last


def _flow_run_id(execution_id: str) -> UUID:
    return ExecutionId.parse(execution_id).flow_run_uuid
