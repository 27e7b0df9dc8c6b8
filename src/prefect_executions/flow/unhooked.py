"""The ends of a flow run for which Prefect calls no hook of its Method; the record is sealed all the same.

Prefect calls cancellation hooks when a run enters Cancelling, so not for a function that
returns `Cancelled()`. After `GeneratorExit` or `Abort` from the author's code it sets no final state.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.futures import PrefectFuture

from prefect_executions import background
from prefect_executions.flow.call import Call
from prefect_executions.flow.hooks import seal_in_state
from prefect_executions.flow.invocation import interruption, is_interruption
from prefect_executions.flow.outcome import sendable_state
from prefect_executions.prefect_api import flow_runs

if TYPE_CHECKING:
    from collections.abc import Iterable

NO_STATE = (GeneratorExit, Abort)
"""What the author's code may raise without a final state in Prefect."""

_POLL = 0.01
"""Seconds between two looks at the state of a run whose function has returned."""


def for_prefect(call: Call, returned: Any) -> Any:
    """Return what the Method *returned* in a form that ends its flow run; never raises.

    If it makes the run Cancelled, the execution is sealed in the background as soon as Prefect has that state.
    """
    _seal_returned_cancel(call, returned)
    with call.never_losing("preparing the returned state"):
        return sendable_state(returned, call.mask)
    return returned


def report_interruption(call: Call, error: BaseException | None) -> None:
    """Ask Prefect to cancel the run if its user interrupted it, before Prefect makes it Crashed; never raises."""
    if is_interruption(error):
        with call.never_losing("reporting the interruption"):
            message = interruption()
            if message is not None:
                flow_runs.cancel(call.run.id, message)


def _seal_returned_cancel(call: Call, returned: object) -> None:
    with call.never_losing("sealing the returned state"):
        if _cancels(returned):
            patience = call.settings.hook_timeout.total_seconds()
            background.submit(partial(_seal_when_cancelled, call, patience), name="seal", patience=patience)


def seal_aborted(call: Call, error: BaseException) -> None:
    """Move a run that *error* ended without a final state to Crashed, and seal it; never raises."""
    with call.never_losing("ending the flow run"):
        run = flow_runs.flow_run(call.run.id) or call.run
        state = run.state
        if state is None or not state.is_final():
            state = flow_runs.set_crashed(run.id, f"Execution was interrupted by {type(error).__name__}: {error}")
        seal_in_state(call.declared, run, state, call.log, call.mask)


def _cancels(returned: object) -> bool:
    """Whether Prefect ends a run as Cancelled that returns this: see `prefect.states.return_value_to_state`."""
    several = isinstance(returned, list | tuple | set)
    parts: Iterable[object] = returned if several else [returned]  # type: ignore[assignment]  # mypy keeps `object`
    cancelled = False
    for part in parts:
        state = _state_of(part)
        if state is None:  # the first part of a large result decides
            return False
        cancelled = cancelled or state.is_cancelled()
    return cancelled


def _state_of(part: object) -> State[Any] | None:
    if isinstance(part, PrefectFuture):
        return part.state
    return part if isinstance(part, State) else None


def _seal_when_cancelled(call: Call, patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        state = call.run.state  # Prefect's engine sets it, when its API has accepted the state
        if state is not None and state.is_final():
            if state.is_cancelled():  # for the other final states Prefect calls the hooks
                seal_in_state(call.declared, call.run, state, call.log, call.mask)
            return
        time.sleep(_POLL)
