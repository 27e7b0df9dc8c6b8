"""Cancel an execution: Prefect is told, its process is stopped where nobody else does that, its record is waited for.

Law: only a process that was started for the execution alone is ever ended from
outside. Any other is asked, and interrupts the Method's code by itself.

How hard a process is pressed to end that was cancelled: it is asked, then told, then ended.
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

# Prefect's runners give a process 30 s between SIGTERM and SIGKILL, and the Method's own cleaning up has as long here.
_OF_A_CALL = ((10.0, signal.SIGTERM), (40.0, signal.SIGKILL))
# A worker that lives has ended it by then.
_OF_A_WORKER = ((50.0, signal.SIGTERM), (80.0, signal.SIGKILL))


class KillEscalation:
    """What is done to the process of one execution, step by step; nothing where it cannot be reached."""

    def __init__(self, catalog: Catalog, record: ExecutionRecord | None) -> None:
        self._record = record
        self._process = record.instance.process if record else None
        self._here = self._process is not None and alive(self._process) is not None
        self._called = record is not None and record.infrastructure.type == "direct"
        self._bundle = OpenBundle(catalog.workbench.folder, record.id) if record else None
        self._left = list(_OF_A_CALL if self._called else _OF_A_WORKER)
        self._asked = False

    @property
    def dead(self) -> bool:
        """Whether the process is known to be gone, and nobody else is there to tell."""
        return self._called and self._process is not None and alive(self._process) is False

    def step(self, waited: float) -> Iterator[str]:
        """Do what is due after *waited* seconds and tell it in a few words."""
        if self._record is None or self._bundle is None:
            return
        if not self._asked:
            self._asked = True
            yield from self._ask(self._record, self._bundle)
        if not self._here or not self._record.instance.own_process or self._is_leaving():
            return
        while self._left and waited >= self._left[0][0]:
            _, number = self._left.pop(0)
            yield from self._send(number)

    def _ask(self, record: ExecutionRecord, bundle: OpenBundle) -> Iterator[str]:
        where = f"process {record.instance.pid} on {record.instance.hostname}"
        if not self._called:
            worker = record.infrastructure.worker
            yield f"{f'Worker {worker}' if worker else 'Its runner'} ends {where}"
            return
        if self._here and bundle.scratch.is_dir():
            with suppress(ExecutionsError):  # it asks Prefect all the same
                bundle.request_cancel()
        yield f"It was called in {where}, which looks for its cancellation every ten seconds and stops by itself"

    def _send(self, number: signal.Signals) -> Iterator[str]:
        assert self._process is not None  # noqa: S101 - it is here
        try:
            sent = send(self._process, number)
        except PermissionError:
            yield f"Process {self._process.pid} is another user's and cannot be ended from here"
            return
        if sent:
            yield f"Process {self._process.pid} does not stop and was sent {number.name}"
        if number is signal.SIGKILL and self._record is not None:
            kill_execution_processes(self._record.id, instance=self._record.instance)

    def _is_leaving(self) -> bool:
        """Whether the Method's code has ended, so that its record is being sealed right now."""
        with suppress(ExecutionsError):
            usage = self._bundle.read(Instance).usage if self._bundle else None
            return usage is not None and (usage.exit_code is not None or usage.exception is not None)
        return False


DEFAULT_WAIT = timedelta(seconds=60)
"""How long the record is waited for; a worker needs ten seconds, and gives a deaf process 30 more."""

_LOOK = 0.5
_ASK = 3.0  # seconds between two questions to Prefect


class CancelResult(NamedTuple):
    """What became of the wish: Prefect's state, and the record's status, None where it has no record yet."""

    id: str
    state: str
    status: Status | None
    sealed: bool
    message: str | None


def cancel(catalog: Catalog, prefix: str, *, by: str, wait: timedelta, tell: Callable[[str], None]) -> CancelResult:
    """Cancel the execution whose id begins with *prefix* in the name of *by*; return when its record is sealed.

    It returns after *wait* in any case. To cancel again changes nothing and waits
    anew. *tell* is told in a few words what is going on.

    Raises:
        NotFoundError: If there is no such execution.
        AmbiguousIdError: If the prefix fits several.
        EndedError: If it has ended otherwise, or its process has.
        RequestError: If it was called by another execution and ends with that only.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    execution_id, record = _target(catalog, prefix)
    if record is not None and catalog.standing(execution_id).sealed:
        return _ended(record)
    pressure = KillEscalation(catalog, record)
    if record is not None:
        _check(record, pressure)
    answer = flow_runs.cancel(_flow_run(execution_id), f"cancelled by {by}")
    if answer.refused and not (answer.state.state.is_cancelling or answer.state.state.is_cancelled):
        raise EndedError(
            f"Prefect says that execution {execution_id} has ended: {answer.state.state.name}. Its record is not "
            "sealed yet; 'executions settle --once' seals what nobody else does."
        )
    tell(f"Prefect says {answer.state.state.name} of {execution_id}")
    if answer.state.state.is_cancelled and not answer.refused:
        # Nothing worked on it, a run that waits or is suspended, so nothing is there that seals it.
        status = record.status if record else None
        return CancelResult(execution_id, answer.state.state.name, status, sealed=False, message=answer.state.message)
    return _awaited(catalog, execution_id, answer.state, pressure, wait=wait.total_seconds(), tell=tell)


def _target(catalog: Catalog, prefix: str) -> tuple[str, ExecutionRecord | None]:
    """The execution that is meant; one that never began has no record, and only Prefect knows its whole id."""
    try:
        execution_id = catalog.find(prefix)
    except NotFoundError as error:
        try:
            flow_run_id = UUID(prefix)
        except ValueError:
            raise NotFoundError(f"{error} One that has not begun yet is told by its whole flow run id.") from None
        if flow_runs.flow_run(flow_run_id) is None:
            raise
        return str(flow_run_id), None
    return execution_id, catalog.record(execution_id)


def _ended(record: ExecutionRecord) -> CancelResult:
    if record.status is not Status.CANCELLED:
        raise EndedError(f"execution {record.id} has ended, it is {record.status}; there is nothing to cancel")
    return CancelResult(record.id, "Cancelled", record.status, sealed=True, message=record.job_status.message)


def _check(record: ExecutionRecord, pressure: KillEscalation) -> None:
    caller = next((one.execution_id for one in record.request.relatives if one.relation == "parent"), None)
    if caller is not None and record.infrastructure.type == "direct":
        raise RequestError(f"execution {record.id} runs inside execution {caller} and ends with it; cancel that one")
    if pressure.dead:
        raise EndedError(
            f"the process of execution {record.id} is gone, so there is nothing to cancel; "
            "'executions settle --once' seals its record and says why it ended"
        )


def _awaited(
    catalog: Catalog,
    execution_id: str,
    state: ObservedState,
    pressure: KillEscalation,
    *,
    wait: float,
    tell: Callable[[str], None],
) -> CancelResult:
    begun = ask_next = time.monotonic()
    while True:
        waited = time.monotonic() - begun
        for words in pressure.step(waited):
            tell(words)
        found = _record(catalog, execution_id)
        if found is not None and catalog.standing(execution_id).sealed:
            newest = _newest(execution_id, state).state.name
            return CancelResult(execution_id, newest, found.status, sealed=True, message=found.job_status.message)
        if time.monotonic() >= ask_next:
            state, ask_next = _newest(execution_id, state), time.monotonic() + _ASK
        if waited >= wait or pressure.dead:
            status = found.status if found else None
            return CancelResult(execution_id, state.state.name, status, sealed=False, message=state.message)
        time.sleep(_LOOK)


def _record(catalog: Catalog, execution_id: str) -> ExecutionRecord | None:
    with suppress(NotFoundError):
        return catalog.record(execution_id)
    return None


def _newest(execution_id: str, known: ObservedState) -> ObservedState:
    with suppress(OrchestratorError):
        run = flow_runs.flow_run(_flow_run(execution_id))
        if run is not None and run.state is not None:
            return flow_runs.observed_state(run.state)
    return known


def _flow_run(execution_id: str) -> UUID:
    return ExecutionId.parse(execution_id).flow_run_uuid
